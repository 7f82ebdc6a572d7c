#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| irqfabric_fuzz::recording::run(input));
