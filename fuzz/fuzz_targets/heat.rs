#![no_main]

#[path = "../decoders/heat.rs"]
mod decoders;

libfuzzer_sys::fuzz_target!(|data: &[u8]| decoders::feed(data));
