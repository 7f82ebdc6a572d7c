//! `guest-probe`: what our test guests do that a shell cannot do fast enough, or at all.
//!
//! A static binary packed into the L1 and L2 initramfs. It fills disks with a pattern, reads them back and
//! checks every word, moves interrupts between CPUs under load, and asks KVM what it can do. Each answer
//! is one line `PROBE {json}` on standard output; the exit status is 0 when the answer is good.
//!
//! It has no dependency, so that plain `rustc` builds it in a second: see `testbed/binaries.rs`.

mod beat;
mod disk;
mod flood;
mod interrupts;
mod kvm;
mod moves;

use std::process::ExitCode;

const USAGE: &str = "\
guest-probe fill FILE BYTES SEED            write a disk image whose every word is known
guest-probe verify DISK                     read it flat out, past the page cache, and check it
guest-probe move MOVES SECONDS [remapped-]level|[remapped-]message DISK [EDGE-ACTION]
                                            move interrupts between CPUs while they fire
guest-probe flood INTERRUPTS SECONDS DISK...
                                            read disks that share an interrupt until it has fired so often
guest-probe kvm                             open /dev/kvm and list what it can do
guest-probe beat                            have the HPET interrupt at a steady rate, until killed";

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let answer = match args[..] {
        ["fill", file, bytes, seed] => number(bytes)
            .and_then(|bytes| Ok((bytes, number(seed)?)))
            .and_then(|(bytes, seed)| disk::fill(file, bytes, seed)),
        ["verify", disk] => disk::verify(disk),
        ["move", moves, seconds, kind, disk, ref edge @ ..] if edge.len() < 2 => number(moves)
            .and_then(|moves| Ok((moves, number(seconds)?, moves::Kind::of(kind)?)))
            .and_then(|(moves, seconds, kind)| moves::run(moves, seconds, kind, disk, edge.first().copied())),
        ["flood", interrupts, seconds, ref disks @ ..] if !disks.is_empty() => number(interrupts)
            .and_then(|interrupts| Ok((interrupts, number(seconds)?)))
            .and_then(|(interrupts, seconds)| flood::run(interrupts, seconds, disks)),
        ["kvm"] => kvm::capabilities(),
        ["beat"] => beat::run(),
        _ => Err(format!("usage:\n{USAGE}")),
    };
    match answer {
        Ok(json) => {
            // A line of its own, whatever was written to the terminal before.
            println!("\nPROBE {json}");
            ExitCode::SUCCESS
        }
        Err(what) => {
            println!("\nPROBE {{\"error\":{what:?}}}");
            ExitCode::FAILURE
        }
    }
}

fn number(text: &str) -> Result<u64, String> {
    text.parse().map_err(|_| format!("{text:?} is not a number"))
}
