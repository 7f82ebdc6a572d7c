//! Fetching a vCPU's thread out of the guest: a signal whose handler sets `kvm_run.immediate_exit`.
//!
//! The signal alone could arrive just before KVM_RUN and be lost; the flag makes that KVM_RUN return at once
//! (Linux `Documentation/virt/kvm/api.rst`, immediate_exit). The handler runs on the vCPU's own thread, so it finds the flag
//! in a thread-local.

use crate::error::Error;
use kvm_ioctls::VcpuFd;
use std::cell::Cell;
use std::marker::PhantomData;
use std::ptr;
use std::thread::JoinHandle;
use vmm_sys_util::signal::{Killable, SIGRTMIN, register_signal_handler};

thread_local! {
    /// `immediate_exit` of the vCPU that this thread runs. Const and without a destructor: a signal handler may touch it.
    static IMMEDIATE_EXIT: Cell<*mut u8> = const { Cell::new(ptr::null_mut()) };
}

/// Makes kicks possible in this process. Before the first vCPU thread; more than once is fine.
pub fn install() -> Result<(), Error> {
    extern "C" fn leave_the_guest(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {
        let flag = IMMEDIATE_EXIT.get();
        if !flag.is_null() {
            // SAFETY: `Kickable` put it there for this thread and takes it away before the vCPU's mapping can go. The
            // kernel reads the byte; nobody holds a reference to it.
            unsafe { flag.write_volatile(1) };
        }
    }
    register_signal_handler(SIGRTMIN(), leave_the_guest)
        .map_err(|errno| Error::Host { what: "install the signal handler that stops vCPUs", source: errno.into() })
}

/// Has `thread` leave the guest, now or before it enters next.
pub fn kick<T>(thread: &JoinHandle<T>) {
    // The only way to fail is that the thread is gone.
    let _ = thread.kill(SIGRTMIN());
}

/// While it lives, kicks of this thread reach this vCPU.
pub struct Kickable<'a> {
    vcpu: &'a mut VcpuFd,
    /// It belongs to the thread that made it.
    not_send: PhantomData<*mut u8>,
}

impl<'a> Kickable<'a> {
    /// For the thread that is about to run `vcpu`.
    pub fn new(vcpu: &'a mut VcpuFd) -> Self {
        IMMEDIATE_EXIT.set(&raw mut vcpu.get_kvm_run().immediate_exit);
        Self { vcpu, not_send: PhantomData }
    }

    /// The vCPU, to run it.
    pub fn vcpu(&mut self) -> &mut VcpuFd {
        self.vcpu
    }
}

impl Drop for Kickable<'_> {
    fn drop(&mut self) {
        IMMEDIATE_EXIT.set(ptr::null_mut());
    }
}
