//! Where a function is on the host's PCI buses, as `lspci -D` and sysfs write it: `0000:00:04.0`.

use std::fmt;
use std::str::FromStr;

/// Domain, bus, device and function.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Address {
    domain: u32,
    bus: u8,
    device: u8,
    function: u8,
}

impl FromStr for Address {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        parse(text)
            .ok_or_else(|| format!("{text:?} is no PCI address: DDDD:BB:DD.F in hexadecimal, as `lspci -D` has it"))
    }
}

/// A domain may be left out, as `lspci` does; a device has 5 bits, a function 3.
fn parse(text: &str) -> Option<Address> {
    let digits = |text: &str, most: usize| {
        let hexadecimal = (1..=most).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        hexadecimal.then(|| u32::from_str_radix(text, 16).ok())?
    };
    let (rest, function) = text.rsplit_once('.')?;
    let (rest, device) = rest.rsplit_once(':')?;
    let (domain, bus) = rest.rsplit_once(':').unwrap_or(("0", rest));
    let (device, function) = (digits(device, 2)?, digits(function, 1)?);
    (device < 32 && function < 8).then_some(Address {
        domain: digits(domain, 8)?,
        bus: digits(bus, 2)? as u8,
        device: device as u8,
        function: function as u8,
    })
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { domain, bus, device, function } = self;
        write!(f, "{domain:04x}:{bus:02x}:{device:02x}.{function}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_as_lspci_writes_them() {
        for (text, meant) in
            [("0000:00:04.0", "0000:00:04.0"), ("3b:1f.7", "0000:3b:1f.7"), ("10000:E1:00.0", "10000:e1:00.0")]
        {
            assert_eq!(text.parse::<Address>().unwrap().to_string(), meant);
        }
    }

    #[test]
    fn what_no_bus_has_is_no_address() {
        for text in ["", "nvme0", "0000:00:04", "00:20.0", "00:1f.8", "0:100:00.0", "00:+4.0", "../00:04.0", "::4.0"] {
            let refusal = text.parse::<Address>().unwrap_err();
            assert!(refusal.contains("is no PCI address"), "{text}: {refusal}");
        }
    }
}
