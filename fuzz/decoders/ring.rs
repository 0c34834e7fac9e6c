//! What the kernel says through the ring of FUSE: it is trusted to mean well, but its layouts are not those of one version alone.

use heatfs::fuse::ring::abi::{self, InHeader, OutHeader, Transfer};
use zerocopy::FromBytes;

pub fn feed(data: &[u8]) {
    if let Some((header, rest)) = abi::split_request(data) {
        assert_eq!(rest.len() + size_of::<InHeader>(), data.len());
        assert_eq!(header.opcode.to_ne_bytes(), data[4..8]);
        if let Ok((transfer, behind)) = Transfer::read_from_prefix(rest) {
            assert_eq!(behind.len() + size_of::<Transfer>(), rest.len());
            assert_eq!(transfer.offset.to_ne_bytes(), rest[8..16]);
        }
    }
    if let Some((_, rest)) = abi::split_answer(data) {
        assert_eq!(rest.len() + size_of::<OutHeader>(), data.len());
    }
    let mut init = data.to_vec();
    match abi::take_uring(&mut init) {
        Some(payload_bytes) => assert!(payload_bytes >= 8192 && init.len() >= 64),
        None => assert_eq!(init, data, "an answer that is none was changed"),
    }
}

pub fn seeds() -> Vec<(String, Vec<u8>)> {
    let mut write = vec![0_u8; 40 + 40 + 4];
    write[..4].copy_from_slice(&84_u32.to_ne_bytes());
    write[4..8].copy_from_slice(&abi::WRITE.to_ne_bytes());
    write[56..60].copy_from_slice(&4_u32.to_ne_bytes());
    let mut init = vec![0_u8; 64];
    init[20..24].copy_from_slice(&(1_u32 << 20).to_ne_bytes());
    vec![("write".to_owned(), write), ("init".to_owned(), init), ("answer".to_owned(), vec![0; 16])]
}
