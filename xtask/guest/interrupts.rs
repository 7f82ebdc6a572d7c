//! `/proc/interrupts`, as Linux's `kernel/irq/proc.c` (`show_interrupts`) prints it.
//!
//! Used on both sides: by `guest-probe` in the guest, and by the judges in xtask.

/// One line of a device interrupt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// Linux's number, which is the GSI for the first IOAPIC's pins only.
    pub irq: u32,
    /// How often it was handled, for each CPU that is online.
    pub counts: Vec<u64>,
    /// `IO-APIC`, `PCI-MSIX-0000:00:01.0`, `XT-PIC`…
    pub chip: String,
    /// The pin within the chip, and the flow: `4-edge`, `24-fasteoi`. None on the PIC, whose input is the number.
    pub pin: String,
    /// What the drivers called it: `ttyS0`, `virtio0`; several separated by commas when shared.
    pub action: String,
}

impl Row {
    pub fn has_action(&self, name: &str) -> bool {
        self.action.split(", ").any(|action| action == name)
    }
}

/// All lines that belong to a numbered interrupt; `NMI`, `LOC` and the like are left out.
pub fn parse(text: &str) -> Vec<Row> {
    let cpus = text.lines().next().map_or(0, |header| header.matches("CPU").count());
    text.lines().filter_map(|line| row(line, cpus)).collect()
}

/// `arch/x86/kernel/i8259.c`: a chip without an interrupt domain, so Linux prints no pin.
const PIC: &str = "XT-PIC";

fn row(line: &str, cpus: usize) -> Option<Row> {
    let (irq, rest) = line.split_once(':')?;
    let irq = irq.trim().parse().ok()?;
    let mut words = rest.split_whitespace();
    let counts: Vec<u64> = words.by_ref().take(cpus).map_while(|word| word.parse().ok()).collect();
    if counts.len() != cpus {
        return None;
    }
    let chip = words.next()?.to_owned();
    let pin = if chip == PIC { String::new() } else { words.next().unwrap_or_default().to_owned() };
    let action = words.collect::<Vec<_>>().join(" ");
    Some(Row { irq, counts, chip, pin, action })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_of_two_cpus_is_read() {
        let rows = parse(
            "           CPU0       CPU1       \n\
             \x20  4:        100          2   IO-APIC   4-edge      ttyS0\n\
             \x20 24:          0         33   IO-APIC   0-fasteoi   virtio0, virtio7\n\
             NMI:          0          0   Non-maskable interrupts\n",
        );
        assert_eq!(rows.len(), 2);
        assert_eq!((rows[0].irq, &rows[0].counts[..], rows[0].pin.as_str()), (4, &[100, 2][..], "4-edge"));
        assert!(rows[1].has_action("virtio7") && !rows[1].has_action("virtio"));
        assert_eq!(rows[1].counts, [0, 33]);
    }

    #[test]
    fn a_line_of_the_pic_has_no_pin() {
        let rows = parse("           CPU0       \n  4:         27    XT-PIC      ttyS0\n");
        assert_eq!((rows[0].pin.as_str(), rows[0].action.as_str()), ("", "ttyS0"));
    }
}
