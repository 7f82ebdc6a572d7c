use irqfabric::fabric::Fabric;
use vmm_sys_util::eventfd::EventFd;
pub struct LineEventfds(EventFd, EventFd);
impl LineEventfds {
    pub fn trigger(&self) -> &EventFd {
        &self.0
    }
    pub fn resample(&self) -> &EventFd {
        &self.1
    }
}
pub fn line_eventfds(_: &Fabric, _: u32, _: &str) -> std::io::Result<LineEventfds> {
    Ok(LineEventfds(EventFd::new(libc::EFD_NONBLOCK)?, EventFd::new(libc::EFD_NONBLOCK)?))
}
