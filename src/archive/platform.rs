//! Platforms, in Go's words: `OS/ARCHITECTURE[/VARIANT]`.

use std::fmt;
use std::str::FromStr;

use serde::Deserialize;

/// What an image runs on.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
pub struct Platform {
    /// The operating system.
    #[serde(default)]
    pub os: String,
    /// The processor.
    #[serde(default)]
    pub architecture: String,
    /// Which kind of that processor.
    pub variant: Option<String>,
}

impl Platform {
    /// This machine's.
    pub fn here() -> Self {
        let architecture = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            "x86" => "386",
            "powerpc64" => "ppc64le",
            "loongarch64" => "loong64",
            other => other,
        };
        Self { os: "linux".into(), architecture: architecture.into(), variant: None }
    }

    /// Whether an image for `self` is one for `wanted`; an image that tells nothing is for all.
    pub fn fits(&self, wanted: &Self) -> bool {
        let says_nothing = self.os.is_empty() && self.architecture.is_empty();
        let same = self.os == wanted.os && self.architecture == wanted.architecture;
        says_nothing
            || same && (wanted.variant.is_none() || self.own_variant() == wanted.own_variant())
    }

    /// The variant; of arm64 there is one, which is often left out.
    fn own_variant(&self) -> Option<&str> {
        match (self.architecture.as_str(), self.variant.as_deref()) {
            ("arm64", None) => Some("v8"),
            (_, variant) => variant,
        }
    }
}

impl FromStr for Platform {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parts: Vec<&str> = text.split('/').collect();
        let (os, architecture, variant) = match parts[..] {
            [os, architecture] => (os, architecture, None),
            [os, architecture, variant] => (os, architecture, Some(variant)),
            _ => return Err("OS/ARCHITECTURE[/VARIANT] is expected, as in linux/arm64".to_owned()),
        };
        let good = |word: &str| {
            !word.is_empty()
                && word.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
        };
        if ![os, architecture].into_iter().chain(variant).all(good) {
            return Err(format!("{text:?} is no platform"));
        }
        let variant = variant.map(str::to_owned);
        Ok(Self { os: os.to_owned(), architecture: architecture.to_owned(), variant })
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = |text: &str| text.escape_default().to_string();
        write!(f, "{}/{}", shown(&self.os), shown(&self.architecture))?;
        match &self.variant {
            Some(variant) => write!(f, "/{}", shown(variant)),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn which_fit() {
        let platform = |text: &str| text.parse::<Platform>().unwrap();
        let table = [
            ("linux/amd64", "linux/amd64", true),
            ("linux/arm64", "linux/amd64", false),
            ("windows/amd64", "linux/amd64", false),
            ("linux/arm64/v8", "linux/arm64", true),
            ("linux/arm64", "linux/arm64/v8", true),
            ("linux/arm/v6", "linux/arm/v7", false),
            ("linux/arm/v7", "linux/arm/v7", true),
        ];
        for (image, wanted, fits) in table {
            assert_eq!(platform(image).fits(&platform(wanted)), fits, "{image} for {wanted}");
        }
        let nothing = Platform { os: String::new(), architecture: String::new(), variant: None };
        assert!(nothing.fits(&platform("linux/amd64")));
        for bad in ["", "linux", "linux/", "a/b/c/d", "linux/a b"] {
            assert!(bad.parse::<Platform>().is_err(), "{bad}");
        }
    }
}
