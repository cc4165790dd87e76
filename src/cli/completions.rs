//! `plyfs completions`.
//!
//! The files in `completions/` are what this prints, for packages to install; a test here tells
//! when they are stale. Names of images and mountpoints are not completed.

use clap::CommandFactory;

/// Arguments of `plyfs completions`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The shell
    #[arg(value_enum)]
    shell: Shell,
}

/// Shells whose completions are known.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum Shell {
    /// To be sourced, or put into share/bash-completion/completions as plyfs
    Bash,
    /// To be put into a directory of $fpath as _plyfs
    Zsh,
    /// To be put into share/fish/vendor_completions.d as plyfs.fish
    Fish,
}

/// Runs `plyfs completions`.
pub(super) fn run(args: &Args) -> anyhow::Result<()> {
    super::say(format_args!("{}", text(args.shell).trim_end()))
}

fn text(shell: Shell) -> String {
    let generator = match shell {
        Shell::Bash => clap_complete::Shell::Bash,
        Shell::Zsh => clap_complete::Shell::Zsh,
        Shell::Fish => clap_complete::Shell::Fish,
    };
    let mut text = Vec::new();
    clap_complete::generate(generator, &mut super::Cli::command(), "plyfs", &mut text);
    String::from_utf8_lossy(&text).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_files_are_what_is_printed() {
        let table = [
            (Shell::Bash, "bash", "plyfs.bash"),
            (Shell::Zsh, "zsh", "_plyfs"),
            (Shell::Fish, "fish", "plyfs.fish"),
        ];
        for (shell, name, file) in table {
            let path = concat!(env!("CARGO_MANIFEST_DIR"), "/completions/").to_owned() + file;
            let held = std::fs::read_to_string(&path).unwrap_or_default();
            let is_fresh = held.trim_end() == text(shell).trim_end();
            let how = format!("cargo run completions {name} > completions/{file}");
            assert!(is_fresh, "completions/{file} is stale: {how}");
        }
    }
}
