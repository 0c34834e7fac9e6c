//! Keys of a repository: names of objects, and encryption of what is stored.
//!
//! One random master key of 32 bytes belongs to a repository; every other key is derived from it (BLAKE3 key derivation). Without
//! encryption it stands in the `format` file. With encryption it stands there sealed by the key of the user's key file, so that a
//! wrong key file is noticed at once, by name, and the key file can be changed without touching a pack.
//!
//! Cipher: XChaCha20-Poly1305, whose nonce is long enough to be drawn at random for every frame. Sealed bytes are
//! nonce (24), ciphertext, tag (16); the place they belong to is authenticated with them, so that a frame moved elsewhere
//! does not open.

use super::ids::{ObjectId, random_bytes};
use crate::error::{Error, Result};
use chacha20poly1305::aead::{Aead, KeyInit, Payload};
use chacha20poly1305::{XChaCha20Poly1305, XNonce};
use std::borrow::Cow;

const NONCE_BYTES: usize = 24;
/// A key file holds at least this much.
pub const KEY_FILE_BYTES_MIN: usize = 32;

/// The keys of an open repository.
pub struct Keys {
    name_key: [u8; 32],
    cipher: Option<XChaCha20Poly1305>,
}

impl Keys {
    pub fn new(master: &[u8; 32], encrypted: bool) -> Keys {
        let name_key = blake3::derive_key("heatfs repository: names of objects, version 1", master);
        let cipher_key = blake3::derive_key("heatfs repository: stored bytes, version 1", master);
        Keys { name_key, cipher: encrypted.then(|| XChaCha20Poly1305::new(&cipher_key.into())) }
    }

    pub fn object_id(&self, bytes: &[u8]) -> ObjectId {
        ObjectId(*blake3::keyed_hash(&self.name_key, bytes).as_bytes())
    }

    /// The bytes as they are stored. `place` must be the same when they are opened.
    pub fn seal(&self, place: &[u8], bytes: Vec<u8>) -> Result<Vec<u8>> {
        match &self.cipher {
            Some(cipher) => seal_with(cipher, place, &bytes),
            None => Ok(bytes),
        }
    }

    /// The opposite of [`Keys::seal`]; None when the bytes are not what was sealed for this place.
    pub fn open<'s>(&self, place: &[u8], stored: &'s [u8]) -> Option<Cow<'s, [u8]>> {
        match &self.cipher {
            Some(cipher) => open_with(cipher, place, stored).map(Cow::Owned),
            None => Some(Cow::Borrowed(stored)),
        }
    }
}

fn seal_with(cipher: &XChaCha20Poly1305, place: &[u8], bytes: &[u8]) -> Result<Vec<u8>> {
    let nonce: [u8; NONCE_BYTES] = random_bytes()?;
    let sealed = cipher.encrypt(&XNonce::from(nonce), Payload { msg: bytes, aad: place });
    let sealed = sealed.map_err(|_| Error::Invalid("too many bytes to encrypt at once".to_owned()))?;
    Ok([nonce.as_slice(), &sealed].concat())
}

fn open_with(cipher: &XChaCha20Poly1305, place: &[u8], stored: &[u8]) -> Option<Vec<u8>> {
    let (nonce, sealed) = stored.split_first_chunk::<NONCE_BYTES>()?;
    cipher.decrypt(&XNonce::from(*nonce), Payload { msg: sealed, aad: place }).ok()
}

fn key_file_cipher(key_file: &[u8]) -> Result<XChaCha20Poly1305> {
    if key_file.len() < KEY_FILE_BYTES_MIN {
        let len = key_file.len();
        return Err(Error::Invalid(format!(
            "the key file holds {len} bytes; at least {KEY_FILE_BYTES_MIN} are needed"
        )));
    }
    let key = blake3::derive_key("heatfs repository: key file, version 1", key_file);
    Ok(XChaCha20Poly1305::new(&key.into()))
}

/// The master key as an encrypted repository's `format` file holds it.
pub fn wrap(master: &[u8; 32], key_file: &[u8], repository: &[u8; 16]) -> Result<Vec<u8>> {
    seal_with(&key_file_cipher(key_file)?, repository, master)
}

/// The opposite of [`wrap`]; None when this is not the key.
pub fn unwrap(wrapped: &[u8], key_file: &[u8], repository: &[u8; 16]) -> Result<Option<[u8; 32]>> {
    let opened = open_with(&key_file_cipher(key_file)?, repository, wrapped);
    Ok(opened.and_then(|bytes| <[u8; 32]>::try_from(bytes).ok()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sealed_bytes_open_only_in_their_place_and_whole() {
        let keys = Keys::new(&[7; 32], true);
        let sealed = keys.seal(b"here", b"secret".to_vec()).expect("sealed");
        assert_eq!(sealed.len(), 6 + NONCE_BYTES + 16);
        assert_eq!(keys.open(b"here", &sealed).as_deref(), Some(b"secret".as_slice()));
        assert_eq!(keys.open(b"there", &sealed), None);
        for bit in 0..sealed.len() * 8 {
            let mut bad = sealed.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(keys.open(b"here", &bad), None, "bit {bit}");
        }
    }

    fn bytes(hex: &str) -> Vec<u8> {
        let digit = |at| u8::from_str_radix(hex.get(at..at + 2).expect("two digits"), 16).expect("hexadecimal");
        (0..hex.len()).step_by(2).map(digit).collect()
    }

    /// What an encrypted repository of years ago holds must open: made by other programs (Python's blake3 and PyNaCl), as FORMAT.md says.
    #[test]
    fn golden_bytes_of_names_and_sealed_bytes() {
        let master: [u8; 32] = std::array::from_fn(|at| u8::try_from(at).expect("small"));
        let keys = Keys::new(&master, true);
        let page = b"what a page holds";
        let name = bytes("7fdd514afd12f76805a7546a43f85ba3feffbe83e54a641692e4255ec8eb0eb1");
        assert_eq!(keys.object_id(page).0.as_slice(), name);
        let sealed = bytes(concat!(
            "6465666768696a6b6c6d6e6f707172737475767778797a7b",
            "b02807cc836b86aadd87548cdbd96935ea24cf27ad3f6a0c52b8fcac59ab87cb72"
        ));
        assert_eq!(keys.open(b"pack 7", &sealed).as_deref(), Some(page.as_slice()));
        let key_file: Vec<u8> = (200..240).collect();
        let wrapped = bytes(concat!(
            "32333435363738393a3b3c3d3e3f404142434445464748492bf1a70dd72707e3",
            "82ec5e2444d34d784061d41bc7d032000a39887ad89ac360af0a399e4db9b8a24730c22f4232c55c"
        ));
        let repository = std::array::from_fn(|at| u8::try_from(at).expect("small"));
        assert_eq!(unwrap(&wrapped, &key_file, &repository).expect("a key file"), Some(master));
    }

    #[test]
    fn names_differ_between_repositories() {
        let (a, b) = (Keys::new(&[1; 32], false), Keys::new(&[2; 32], false));
        assert_ne!(a.object_id(b"x"), b.object_id(b"x"));
    }
}
