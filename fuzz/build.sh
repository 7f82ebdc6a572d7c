#!/bin/bash -eu
# Builds the targets the way OSS-Fuzz wants them: binaries, and a seed corpus for each, in $OUT. Run in its Rust builder
# image, at the root of the checkout.

cargo fuzz build --release --debug-assertions --features libfuzzer

for target in fuzz/fuzz_targets/*.rs; do
    name="$(basename "$target" .rs)"
    cp "fuzz/target/x86_64-unknown-linux-gnu/release/$name" "$OUT/"
    zip --quiet --junk-paths "$OUT/${name}_seed_corpus.zip" "fuzz/corpus/$name/"*
done
