//! What a PC's firmware leaves behind for the guest, where there is no firmware.

use super::layout::RESET_VECTOR;
use crate::devices::power;
use crate::error::Error;
use kvm_bindings::{
    KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, kvm_irqchip, kvm_irqchip__bindgen_ty_1, kvm_pic_state,
};
use kvm_ioctls::VmFd;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

/// Code at the real-mode reset vector that resets the machine. Linux jumps there to reboot: hardware-reduced ACPI makes it
/// try EFI first (`reboot_init`), and what it tries after that is the BIOS, not the ACPI reset register.
pub fn install_reset_vector(memory: &GuestMemoryMmap) -> Result<(), Error> {
    let [low, high] = power::RESET.to_le_bytes();
    #[rustfmt::skip]
    let code = [
        0xb0, power::RESET_VALUE, // mov al, value
        0xba, low, high,          // mov dx, port
        0xee,                     // out dx, al
        0xf4,                     // hlt
        0xeb, 0xfd,               // jmp to the hlt
    ];
    memory.write_slice(&code, GuestAddress(RESET_VECTOR)).map_err(|_| Error::NoRoom("the reset vector"))
}

/// Masks KVM's PIC. Lines of GSIs below 16 end there as well, and the boot processor's LVT0 is open for it
/// (KVM_X86_QUIRK_LINT0_REENABLED): a guest that knows of no PIC would get exceptions for interrupts.
pub fn silence_pic(vm: &VmFd) -> Result<(), Error> {
    for chip_id in [KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE] {
        let pic = kvm_pic_state { imr: 0xff, ..Default::default() };
        let chip = kvm_irqchip { chip_id, chip: kvm_irqchip__bindgen_ty_1 { pic }, ..Default::default() };
        vm.set_irqchip(&chip).map_err(Error::kvm("KVM_SET_IRQCHIP"))?;
    }
    Ok(())
}
