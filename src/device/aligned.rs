//! Page-aligned memory for direct I/O, without `unsafe`: the buffer is made of whole pages.

/// One page with the alignment that O_DIRECT asks for.
#[derive(Clone, Copy)]
#[repr(C, align(4096))]
struct Page([u8; 4096]);

/// A zeroed, growable run of page-aligned bytes.
#[derive(Clone, Default)]
pub struct AlignedBuf {
    pages: Vec<Page>,
}

impl AlignedBuf {
    /// At least `len` bytes, rounded up to whole pages, all zero.
    pub fn zeroed(len: usize) -> AlignedBuf {
        AlignedBuf { pages: vec![Page([0; 4096]); len.div_ceil(4096)] }
    }

    /// Length in bytes: always a multiple of 4096.
    pub fn len(&self) -> usize {
        self.pages.len() * 4096
    }

    pub fn is_empty(&self) -> bool {
        self.pages.is_empty()
    }

    /// Grows with zeros or shrinks to `len` bytes rounded up to whole pages.
    pub fn resize(&mut self, len: usize) {
        self.pages.resize(len.div_ceil(4096), Page([0; 4096]));
    }
}

impl std::ops::Deref for AlignedBuf {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        super::sys::pages_as_bytes(&self.pages)
    }
}

impl std::ops::DerefMut for AlignedBuf {
    fn deref_mut(&mut self) -> &mut [u8] {
        super::sys::pages_as_bytes_mut(&mut self.pages)
    }
}
