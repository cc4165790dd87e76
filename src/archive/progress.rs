//! Who wants to be told how far a load is.

/// Told of each layer that is read.
pub trait Progress: Sync {
    /// A layer begins: its short name, what is done with it, and its size in bytes as it is stored.
    fn layer(&self, name: &str, doing: &str, size: u64) -> Box<dyn LayerProgress>;

    /// What is done with the whole.
    fn phase(&self, doing: &str);
}

/// Told of one layer; dropped when the layer is done, or failed.
pub trait LayerProgress: Sync + Send {
    /// So many more bytes were read.
    fn advance(&self, bytes: u64);
}

/// Tells nobody.
#[derive(Clone, Copy, Debug)]
pub struct Silent;

impl Progress for Silent {
    fn layer(&self, _name: &str, _doing: &str, _size: u64) -> Box<dyn LayerProgress> {
        Box::new(Self)
    }

    fn phase(&self, _doing: &str) {}
}

impl LayerProgress for Silent {
    fn advance(&self, _bytes: u64) {}
}
