//! The fuzz targets on any toolchain: over the corpus, over inputs near it, and over random ones.

use irqfabric_fuzz::TARGETS;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use std::fs;
use std::path::Path;

fn corpus(target: &str) -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(target);
    let files = fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    files.map(|file| fs::read(file.unwrap().path()).unwrap()).collect()
}

#[test]
fn every_target_has_a_corpus_and_holds_on_it() {
    for (name, run) in TARGETS {
        let corpus = corpus(name);
        assert!(!corpus.is_empty(), "{name}");
        corpus.iter().for_each(|input| run(input));
    }
}

#[test]
fn every_target_holds_on_random_inputs() {
    for (name, run) in TARGETS {
        let mut runner = TestRunner::new(Config { failure_persistence: None, ..Config::with_cases(512) });
        let result = runner.run(&vec(any::<u8>(), 0..2048), |input| {
            run(&input);
            Ok(())
        });
        if let Err(error) = result {
            panic!("{name}: {error}")
        }
    }
}

#[test]
fn every_target_holds_near_its_corpus() {
    for (name, run) in TARGETS {
        let corpus = corpus(name);
        let strategy = (any::<prop::sample::Index>(), vec((any::<prop::sample::Index>(), any::<u8>()), 0..8));
        let mut runner = TestRunner::new(Config { failure_persistence: None, ..Config::with_cases(512) });
        let result = runner.run(&strategy, |(file, changes)| {
            let mut input = file.get(&corpus).clone();
            for (place, byte) in changes.into_iter().filter(|_| !corpus.is_empty()) {
                if let Some(place) = (!input.is_empty()).then(|| place.index(input.len())) {
                    input[place] = byte;
                }
            }
            run(&input);
            Ok(())
        });
        if let Err(error) = result {
            panic!("{name}: {error}")
        }
    }
}
