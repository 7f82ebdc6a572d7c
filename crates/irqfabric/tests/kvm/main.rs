//! The fabric on real KVM. Needs /dev/kvm: `cargo test -- --skip on_kvm::` leaves these out.

#[path = "../common/mod.rs"]
mod common;

mod on_kvm {
    mod backend;
    mod differential;
    mod lines;
    mod vectors;
    mod vtd;
}
