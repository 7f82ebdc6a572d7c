//! Fetching a vCPU's thread out of the guest: a signal whose handler sets `kvm_run.immediate_exit`.
//!
//! The signal alone could arrive just before KVM_RUN and be lost; the flag makes that KVM_RUN return at once
//! (Linux `Documentation/virt/kvm/api.rst`, immediate_exit). The handler runs on the vCPU's own thread, so it finds the flag
//! in a thread-local.

use crate::error::Error;
use irqfabric::hv::EVERY_VCPU;
use kvm_ioctls::VcpuFd;
use std::cell::Cell;
use std::marker::PhantomData;
use std::ptr;
use std::sync::{Mutex, MutexGuard, PoisonError};
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

/// Which thread runs which vCPU: the fabric's way to fetch one by its APIC id.
#[derive(Debug, Default)]
pub struct Kicker {
    /// A thread takes itself out before it ends, so that one that is in here can be signalled.
    threads: Mutex<Vec<(u32, libc::pthread_t)>>,
}

impl Kicker {
    /// Has a vCPU leave the guest, now or before it enters next; see `FabricBuilder::kick`. One that does not run yet will
    /// look around before it does, and so will this thread.
    pub fn kick(&self, apic_id: u32) {
        // SAFETY: it has no precondition.
        let own = unsafe { libc::pthread_self() };
        for &(id, thread) in self.lock().iter() {
            if (id == apic_id || apic_id == EVERY_VCPU) && thread != own {
                // SAFETY: a thread that is registered has not ended, and cannot while this lock is held. The handler that
                // `install` has put there touches nothing but its own thread's vCPU.
                unsafe { libc::pthread_kill(thread, SIGRTMIN()) };
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<(u32, libc::pthread_t)>> {
        self.threads.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// While it lives, kicks of this thread reach this vCPU.
pub struct Kickable<'a> {
    vcpu: &'a mut VcpuFd,
    kicker: &'a Kicker,
    /// It belongs to the thread that made it.
    not_send: PhantomData<*mut u8>,
}

impl<'a> Kickable<'a> {
    /// For the thread that is about to run `vcpu`.
    pub fn new(vcpu: &'a mut VcpuFd, apic_id: u32, kicker: &'a Kicker) -> Self {
        IMMEDIATE_EXIT.set(&raw mut vcpu.get_kvm_run().immediate_exit);
        // SAFETY: it has no precondition.
        kicker.lock().push((apic_id, unsafe { libc::pthread_self() }));
        Self { vcpu, kicker, not_send: PhantomData }
    }

    /// The vCPU, to run it.
    pub fn vcpu(&mut self) -> &mut VcpuFd {
        self.vcpu
    }
}

impl Drop for Kickable<'_> {
    fn drop(&mut self) {
        // SAFETY: it has no precondition.
        let own = unsafe { libc::pthread_self() };
        self.kicker.lock().retain(|(_, thread)| *thread != own);
        IMMEDIATE_EXIT.set(ptr::null_mut());
    }
}
