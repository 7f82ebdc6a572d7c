//! Stock KVM and stock Linux guests on any machine.
//!
//! ```text
//!  this machine (any)            L1: stock Debian kernel under TCG          L2: guest of our VMM
//!  cargo xtask testbed   ─────►  /dev/kvm = real kvm_amd              ───►  stock Linux, same kernel
//!                                runs our static binary
//! ```
//!
//! QEMU's TCG emulates AMD SVM with nested paging, so an unmodified kernel in it has a real `/dev/kvm`.
//! Good for behaviour, counts and order; never for speed.
//!
//! From the top: `command` is the command line, `run` plays a scenario and judges it, `record` keeps what a guest did, `machine` is a QEMU,
//! `initramfs` what it boots into, `binaries` what we build for it, `packages` and `apt` what Debian gives.

mod apt;
mod binaries;
pub mod command;
mod initramfs;
mod kernel;
mod machine;
mod packages;
mod record;
mod recording;
pub mod run;

pub use machine::{KERNEL_ARGUMENTS, Passable};
pub use packages::Testbed;
