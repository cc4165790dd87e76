//! Real mounts as subjects: plyfs's own, and the kernel's overlayfs beside it.

use std::path::{Path, PathBuf};

use crate::common::mounted::{io_mode, plyfs, run, sh, unmount_if_mounted};
use crate::subject::Mounting;

/// Who mounts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum By {
    Plyfs,
    /// With every feature that makes it a POSIX filesystem.
    Kernel,
}

/// A stack of layers below `dir`, mounted on `dir/merged`.
pub struct Stacked {
    by: By,
    dir: PathBuf,
    lowers: Vec<PathBuf>,
    uppers: usize,
    options: Vec<String>,
}

impl Stacked {
    /// Mounts `lowers`, the topmost first.
    pub fn mount(by: By, dir: &Path, lowers: Vec<PathBuf>, options: &[&str]) -> Self {
        let options = options.iter().map(|&option| option.to_owned()).collect();
        let mut made = Self { by, dir: dir.to_owned(), lowers, uppers: 0, options };
        std::fs::create_dir(made.merged()).unwrap();
        made.make_upper();
        made.attach();
        made
    }

    pub fn merged(&self) -> PathBuf {
        self.dir.join("merged")
    }

    fn upper(&self) -> PathBuf {
        self.dir.join(format!("upper{}", self.uppers))
    }

    fn work(&self) -> PathBuf {
        self.dir.join(format!("work{}", self.uppers))
    }

    fn make_upper(&mut self) {
        self.uppers += 1;
        std::fs::create_dir(self.upper()).unwrap();
        std::fs::create_dir(self.work()).unwrap();
    }

    fn attach(&self) {
        match self.by {
            By::Plyfs => {
                let mut command = plyfs();
                command.args(["mount", "--volatile"]).args(io_mode()).args(&self.options);
                for lower in &self.lowers {
                    command.arg("--lower").arg(lower);
                }
                command.arg("--upper").arg(self.upper()).arg("--work").arg(self.work());
                run(command.arg(self.merged()));
            }
            By::Kernel => {
                let lowers: Vec<_> =
                    self.lowers.iter().map(|path| path.display().to_string()).collect();
                let features = "redirect_dir=on,index=on,metacopy=off,xino=auto";
                let (lowers, upper, work) = (lowers.join(":"), self.upper(), self.work());
                sh(&format!(
                    "mount -t overlay overlay -o {features},lowerdir={lowers},upperdir={},workdir={} {}",
                    upper.display(),
                    work.display(),
                    self.merged().display(),
                ));
            }
        }
    }

    /// The process that serves the mount, and the workdir that it uses.
    pub fn daemon(&self) -> (String, PathBuf) {
        let lock = std::fs::read_to_string(self.work().join("lock")).unwrap();
        let pid = lock.strip_prefix("pid ").unwrap().split(',').next().unwrap().to_owned();
        (pid, self.work())
    }

    /// Takes away the mount of a daemon that is dead, and mounts anew.
    pub fn revive(&self) {
        run(plyfs().args(["umount", "--lazy"]).arg(self.merged()));
        self.attach();
    }

    fn detach(&self) {
        match self.by {
            By::Plyfs => drop(run(plyfs().arg("umount").arg(self.merged()))),
            By::Kernel => drop(sh(&format!("umount {}", self.merged().display()))),
        }
    }
}

impl Mounting for Stacked {
    fn remount(&mut self) {
        self.detach();
        self.attach();
    }

    fn stack(&mut self) {
        self.detach();
        self.lowers.insert(0, self.upper());
        self.make_upper();
        self.attach();
    }
}

impl Drop for Stacked {
    fn drop(&mut self) {
        match self.by {
            By::Plyfs => unmount_if_mounted(&self.merged()),
            By::Kernel => {
                let _ = std::process::Command::new("umount").arg("-l").arg(self.merged()).output();
            }
        }
    }
}
