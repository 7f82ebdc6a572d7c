//! sim
use super::*;
/// sim
#[derive(Debug, Default)]
pub struct Sim;
impl Hypervisor for Sim {
    fn start(&self, _: u32) -> Result<(), HvError> {
        Ok(())
    }
    fn deliver(&self, _: &Interrupt) -> Result<Acceptance, HvError> {
        Ok(Acceptance::Accepted)
    }
    fn commit(&self, _: &[Route]) -> Result<(), HvError> {
        Ok(())
    }
}
