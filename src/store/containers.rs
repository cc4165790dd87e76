//! Containers: the writable layers of images, which outlive their mounts.

use std::fs::{self, File};
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::digest::{Digest, ImageId};
use super::staging::remove_all;
use super::{Error, Result, Staging, Store, io_error};
use crate::layers::private_xattr;
use crate::layers::upper::{self, lock_holder};
use crate::sys::Errno;

/// Digits of a container's ID that make its name, if none is given.
const SHORT_ID: usize = 12;
const MAX_NAME: usize = 128;

/// A writable layer.
#[derive(Clone, Debug)]
pub struct Container {
    /// 64 hexadecimal digits.
    pub id: String,
    /// Its name.
    pub name: String,
    /// Its image, as it was asked for.
    pub image: String,
    /// Its image.
    pub image_id: ImageId,
    /// When it was made, RFC 3339.
    pub created: String,
    path: PathBuf,
}

#[derive(Debug, Deserialize, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Config {
    #[serde(rename = "ID")]
    id: String,
    name: String,
    image: String,
    #[serde(rename = "ImageID")]
    image_id: String,
    created: String,
}

impl Container {
    /// What was changed.
    pub fn upper(&self) -> PathBuf {
        self.path.join("upper")
    }

    /// What is being changed, and the index.
    pub fn work(&self) -> PathBuf {
        self.path.join("work")
    }
}

impl Store {
    /// The container `name` of the image, made if there is none; whether it was made.
    pub fn container_for(
        &self,
        image: &ImageId,
        asked: &str,
        name: Option<&str>,
    ) -> Result<(Container, bool)> {
        let staging = self.staging()?; // takes the store's lock for itself
        let _lock = self.lock()?;
        if let Some(name) = name {
            check_name(name)?;
            if let Some(known) = self.containers()?.into_iter().find(|c| c.name == name) {
                if known.image_id != *image {
                    let (name, image) = (known.name, known.image);
                    return Err(Error::OtherImage { name, image, asked: asked.to_owned() });
                }
                return Ok((known, false));
            }
        }
        Ok((self.make_container(&staging, image, asked, name)?, true))
    }

    fn make_container(
        &self,
        staging: &Staging,
        image: &ImageId,
        asked: &str,
        name: Option<&str>,
    ) -> Result<Container> {
        let seed =
            format!("{image} {} {:?}", staging.path().display(), std::time::SystemTime::now());
        let id = Digest::of(seed.as_bytes()).hex();
        let config = Config {
            name: name.map_or_else(|| id[..SHORT_ID].to_owned(), str::to_owned),
            image: asked.to_owned(),
            image_id: image.to_string(),
            created: jiff::Timestamp::now().to_string(),
            id,
        };
        for dir in ["upper", "work"] {
            let path = staging.path().join(dir);
            fs::create_dir(&path).map_err(io_error("make", &path))?;
        }
        self.copy_root_attributes(image, &staging.path().join("upper"))?;
        let path = staging.path().join("config.json");
        let text = serde_json::to_vec_pretty(&config).map_err(|e| Error::Damaged {
            path: path.display().to_string(),
            reason: e.to_string(),
        })?;
        let written = File::create_new(&path).and_then(|mut file| {
            std::io::Write::write_all(&mut file, &text)?;
            file.sync_all()
        });
        written.map_err(io_error("write", &path))?;
        let home = self.root.join("containers").join(&config.id);
        fs::rename(staging.path(), &home).map_err(io_error("make", &home))?;
        read_container(&home)
    }

    /// The upper directory's own attributes are what the mount's root shows.
    fn copy_root_attributes(&self, image: &ImageId, upper: &Path) -> Result<()> {
        use std::os::unix::fs::MetadataExt;
        let Some(top) = self.layer_dirs(image)?.into_iter().next() else {
            return Ok(());
        };
        let from = fs::metadata(&top).map_err(io_error("stat", &top))?;
        std::os::unix::fs::chown(upper, Some(from.uid()), Some(from.gid()))
            .map_err(io_error("chown", upper))?;
        // Those too that tell the owner which the filesystem was not given.
        let open =
            |path: &Path| crate::sys::open_dir(path).map_err(|e| io_error("open", path)(e.into()));
        let all = |name: &[u8]| Some(name.to_vec().into());
        private_xattr::copy_with(open(&top)?.as_fd(), open(upper)?.as_fd(), all)
            .map_err(|errno| io_error("copy xattrs to", upper)(errno.into()))?;
        fs::set_permissions(upper, fs::Permissions::from_mode(from.mode() & 0o7777))
            .map_err(io_error("chmod", upper))?;
        let times = fs::FileTimes::new()
            .set_accessed(from.accessed().map_err(io_error("stat", &top))?)
            .set_modified(from.modified().map_err(io_error("stat", &top))?);
        File::open(upper)
            .and_then(|dir| dir.set_times(times))
            .map_err(io_error("set times of", upper))
    }

    /// All containers, by name.
    pub fn containers(&self) -> Result<Vec<Container>> {
        let mut containers = Vec::new();
        for container in self.all_containers()? {
            match container {
                Ok(container) => containers.push(container),
                Err(error) => log::warn!("{error}"), // one that is damaged must not hide the others
            }
        }
        containers.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(containers)
    }

    /// All containers, also those that cannot be read.
    pub(super) fn all_containers(&self) -> Result<Vec<Result<Container>>> {
        let dir = self.root.join("containers");
        let mut containers = Vec::new();
        for entry in fs::read_dir(&dir).map_err(io_error("read", &dir))? {
            let path = entry.map_err(io_error("read", &dir))?.path();
            match read_container(&path) {
                Err(_) if !path.join("upper").is_dir() => {} // removed meanwhile, or none
                container => containers.push(container),
            }
        }
        Ok(containers)
    }

    /// The container of this name, ID, or unambiguous beginning of an ID.
    pub fn find_container(&self, asked: &str) -> Result<Container> {
        let all = self.containers()?;
        if let Some(named) = all.iter().find(|c| c.name == asked) {
            return Ok(named.clone());
        }
        let fitting: Vec<_> = all.iter().filter(|c| c.id.starts_with(asked)).collect();
        match fitting[..] {
            [only] if !asked.is_empty() => Ok(only.clone()),
            [_, _, ..] if !asked.is_empty() => {
                Err(Error::AmbiguousContainer { asked: asked.to_owned(), count: fitting.len() })
            }
            _ => Err(Error::NoContainer(asked.to_owned())),
        }
    }

    /// Removes a container that is not mounted.
    pub fn remove_container(&self, container: &Container) -> Result<()> {
        let in_use = || Error::InUse {
            name: container.name.clone(),
            holder: lock_holder(&container.work()).unwrap_or_else(|| "locked".to_owned()),
        };
        // Holding the lock keeps mounts away until it is out of their sight.
        let held = match upper::try_lock(&container.work()) {
            Ok(held) => held,
            Err(Errno::WOULDBLOCK) => return Err(in_use()),
            Err(errno) => return Err(io_error("lock", &container.work())(errno.into())),
        };
        self.remove_held(container, held)
    }

    /// Removes a container that was made for a mount which failed; not if another process has
    /// mounted it meanwhile, and then or before changed something.
    pub fn remove_unused(&self, container: &Container) -> Result<()> {
        let work = container.work();
        let held = match upper::try_lock_now(&work) {
            Ok(held) => held,
            Err(Errno::WOULDBLOCK) => return Ok(()),
            Err(errno) => return Err(io_error("lock", &work)(errno.into())),
        };
        let upper = container.upper();
        let mut changed = fs::read_dir(&upper).map_err(io_error("read", &upper))?;
        match changed.next() {
            Some(_) => Ok(()),
            None => self.remove_held(container, held),
        }
    }

    fn remove_held(&self, container: &Container, held: Option<File>) -> Result<()> {
        let trash = self.staging()?;
        let inside = trash.path().join("container");
        fs::rename(&container.path, &inside).map_err(io_error("remove", &container.path))?;
        drop(held);
        remove_all(&inside).map_err(io_error("remove", &inside))
    }
}

fn read_container(path: &Path) -> Result<Container> {
    let file = path.join("config.json");
    let text = fs::read(&file).map_err(io_error("read", &file))?;
    let damaged = |reason: String| Error::Damaged { path: file.display().to_string(), reason };
    let config: Config = serde_json::from_slice(&text).map_err(|e| damaged(e.to_string()))?;
    let image_id = config.image_id.parse().map(ImageId).map_err(|e| damaged(e.to_string()))?;
    Ok(Container {
        id: config.id,
        name: config.name,
        image: config.image,
        image_id,
        created: config.created,
        path: path.to_owned(),
    })
}

fn check_name(name: &str) -> Result<()> {
    let first = |b: u8| b.is_ascii_alphanumeric();
    let rest = |b: u8| first(b) || b"_.-".contains(&b);
    let good =
        name.len() <= MAX_NAME && name.bytes().next().is_some_and(first) && name.bytes().all(rest);
    if good { Ok(()) } else { Err(Error::BadName(name.to_owned())) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_containers() {
        for good in ["a", "web-1", "A_b.c", "0"] {
            assert!(check_name(good).is_ok(), "{good}");
        }
        for bad in ["", ".a", "-a", "a/b", "a b", "ä", &"x".repeat(129)] {
            assert!(check_name(bad).is_err(), "{bad}");
        }
    }
}
