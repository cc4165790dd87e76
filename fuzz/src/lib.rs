//! What the fuzz targets share.
//!
//! - [`place`]: a store in a temporary directory; what must hold after a load
//! - [`tar`]: writing tars, sound or not, and mutating them so that they stay readable
//! - [`layer`]: layers out of arbitrary bytes: few names, many kinds
//! - [`image`]: whole image archives out of arbitrary bytes: sound documents, bent here and there

pub mod image;
pub mod layer;
pub mod place;
pub mod tar;
