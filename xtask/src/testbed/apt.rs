//! Debian's packages, through an apt configuration of our own.
//!
//! The machine's sources stay as they are: ours live in the testbed's cache, with their own package lists.
//! So it matters neither whether `apt-get update` was ever run, nor whether some third-party source of the
//! machine fails. The mirrors are those that the machine's own sources name; only what Debian's archive key
//! signed is accepted from them. Beside the machine's suite we ask for its backports, which have the QEMU and
//! the kernel that Debian 12 lacks.

use crate::process;
use crate::report::{Live, Unavailable};
use crate::workspace;
use anyhow::{Context, Result, bail};
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// A slow mirror is not a dead one.
const LIMIT: Duration = Duration::from_secs(10 * 60);

const ARCHIVE_KEY: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

pub struct Apt<'a> {
    folder: PathBuf,
    log: PathBuf,
    live: &'a Live,
}

/// One version of a package, and the suite that has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    pub version: String,
    pub suite: String,
}

impl<'a> Apt<'a> {
    /// Writes our sources and fetches their package lists.
    pub fn open(cache: &Path, live: &'a Live) -> Result<Self> {
        let codename = debian_codename()?;
        let folder = workspace::make(cache.join("apt"))?;
        for part in ["sources", "lists/partial", "archives/partial", "no-lists/partial"] {
            workspace::make(folder.join(part))?;
        }
        let log = workspace::logs()?.join("prepare.log");
        let apt = Self { folder, log, live };
        let mirrors = apt.mirrors(&codename)?;
        let sources = apt.folder.join("sources/debian.sources");
        fs::write(&sources, stanzas(&mirrors, &codename))
            .with_context(|| format!("cannot write {}", sources.display()))?;
        live.note("fetching package lists");
        // Its exit status says little: one failing mirror among several is an error, none reachable is not.
        // Whether a package is to be had is what counts, and is asked next.
        process::run(apt.command("apt-get", &["update"]), &apt.log, live, Some(LIMIT))?;
        Ok(apt)
    }

    /// The versions of a package, newest first.
    pub fn candidates(&self, package: &str) -> Result<Vec<Candidate>> {
        Ok(parse_madison(&self.ask("apt-cache", &["madison", package])?))
    }

    pub fn newest(&self, package: &str) -> Result<Candidate> {
        self.candidates(package)?.into_iter().next().ok_or_else(|| {
            Unavailable {
                reason: format!(
                    "the Debian mirrors of this machine give no package {package} (no network? see {})",
                    workspace::shown(&self.log)
                ),
                enable: "cargo xtask testbed prepare".into(),
            }
            .into()
        })
    }

    /// The real package behind a metapackage: its first dependency with this prefix.
    pub fn behind(&self, metapackage: &str, version: &str, prefix: &str) -> Result<String> {
        let text = self.ask("apt-cache", &["show", &format!("{metapackage}={version}")])?;
        text.lines()
            .find_map(|line| line.strip_prefix("Depends:"))
            .into_iter()
            .flat_map(|depends| depends.split([',', ' ']))
            .find(|name| name.starts_with(prefix))
            .map(str::to_owned)
            .with_context(|| format!("{metapackage} {version} depends on no {prefix}…"))
    }

    /// Fetches a package and unpacks it; nothing is installed.
    pub fn unpack(&self, package: &str, version: &str, into: &Path) -> Result<()> {
        let folder = tempfile::tempdir_in(&self.folder).context("cannot make a folder for downloads")?;
        let mut download = self.command("apt-get", &["download", &format!("{package}={version}")]);
        download.current_dir(folder.path());
        self.live.note(&format!("downloading {package} {version}"));
        self.run(download)?;
        let file = fs::read_dir(folder.path())?
            .filter_map(|entry| Some(entry.ok()?.path()))
            .find(|path| path.extension().is_some_and(|extension| extension == "deb"))
            .with_context(|| format!("apt-get download {package} left no package"))?;
        let mut unpack = Command::new("dpkg");
        unpack.arg("--extract").arg(&file).arg(into);
        self.live.note(&format!("unpacking {package}"));
        self.run(unpack)
    }

    /// Installs packages, taking what they depend on from the same suite where it must be newer.
    pub fn install(&self, packages: &[&str], suite: &str) -> Result<()> {
        let mut args = vec!["install", "--yes", "--no-install-recommends", "--no-remove", "-t", suite];
        args.extend(packages);
        self.live.note(&format!("installing {}", packages.join(" ")));
        self.run(self.command("apt-get", &args))
    }

    /// The places that the machine's own sources name for this suite and for its security updates. apt itself
    /// reads those sources, so every format it knows is understood. With an empty list folder it prints the
    /// address of each release file: `'<mirror>/dists/<suite>/InRelease' …`.
    fn mirrors(&self, codename: &str) -> Result<BTreeSet<(String, Suite)>> {
        let mut command = Command::new("apt-get");
        command.arg("-o").arg(option("Dir::State::Lists", &self.folder.join("no-lists")));
        command.args(["update", "--print-uris"]);
        let mirrors = parse_uris(&output(command)?, codename);
        if mirrors.is_empty() {
            bail!(Unavailable {
                reason: format!("this machine's apt sources name no mirror for {codename}"),
                enable: "add Debian to /etc/apt/sources.list.d, then: cargo xtask testbed prepare".into(),
            });
        }
        Ok(mirrors)
    }

    fn ask(&self, tool: &str, args: &[&str]) -> Result<String> {
        output(self.command(tool, args))
    }

    fn run(&self, command: Command) -> Result<()> {
        let program = command.get_program().to_string_lossy().into_owned();
        let end = process::run(command, &self.log, self.live, Some(LIMIT))?;
        if !end.is_success() {
            let text = fs::read_to_string(&self.log).unwrap_or_default();
            bail!("{program}: {end}\n{}", crate::report::tail(&text, 15));
        }
        Ok(())
    }

    fn command(&self, tool: &str, args: &[&str]) -> Command {
        let mut command = Command::new(tool);
        for option in [
            option("Dir::Etc::SourceList", Path::new("/dev/null")),
            option("Dir::Etc::SourceParts", &self.folder.join("sources")),
            option("Dir::State::Lists", &self.folder.join("lists")),
            option("Dir::Cache::Archives", &self.folder.join("archives")),
            // The binary caches describe the machine's own sources.
            "Dir::Cache::pkgcache=".into(),
            "Dir::Cache::srcpkgcache=".into(),
            "Acquire::Languages=none".into(),
            "Acquire::Retries=3".into(),
            // The unprivileged download user cannot enter our folder; signatures are checked all the same.
            "APT::Sandbox::User=".into(),
            // Somebody's unattended upgrade may hold the lock.
            "DPkg::Lock::Timeout=120".into(),
        ] {
            command.arg("-o").arg(option);
        }
        command.args(args).env("DEBIAN_FRONTEND", "noninteractive").env("LC_ALL", "C.UTF-8");
        command
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Suite {
    Release,
    Security,
}

fn option(name: &str, path: &Path) -> String {
    format!("{name}={}", path.display())
}

fn output(mut command: Command) -> Result<String> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command.env("LC_ALL", "C.UTF-8").output().with_context(|| format!("cannot start {program}"))?;
    if !output.status.success() {
        bail!("{program}: {}: {}", output.status, String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn debian_codename() -> Result<String> {
    let text = fs::read_to_string("/etc/os-release").unwrap_or_default();
    let field = |name: &str| {
        let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='))?;
        Some(value.trim_matches('"').to_owned())
    };
    match (field("ID").as_deref(), field("VERSION_CODENAME")) {
        (Some("debian"), Some(codename)) => Ok(codename),
        (id, _) => bail!(Unavailable {
            reason: format!("the testbed takes its kernel from Debian; this system is {}", id.unwrap_or("unknown")),
            enable: "cargo xtask testbed prepare, on Debian 12 or newer (a container will do)".into(),
        }),
    }
}

fn parse_uris(text: &str, codename: &str) -> BTreeSet<(String, Suite)> {
    text.lines()
        .filter_map(|line| {
            let (uri, _) = line.strip_prefix('\'')?.split_once('\'')?;
            let (mirror, suite) = uri.strip_suffix("/InRelease")?.rsplit_once("/dists/")?;
            let suite = match suite.strip_prefix(codename)? {
                "" => Suite::Release,
                "-security" => Suite::Security,
                _ => return None,
            };
            Some((mirror.to_owned(), suite))
        })
        .collect()
}

fn stanzas(mirrors: &BTreeSet<(String, Suite)>, codename: &str) -> String {
    let key = if Path::new(ARCHIVE_KEY).exists() { format!("Signed-By: {ARCHIVE_KEY}\n") } else { String::new() };
    let stanza = |(mirror, suite): &(String, Suite)| {
        let suites = match suite {
            Suite::Release => format!("{codename} {codename}-updates {codename}-backports"),
            Suite::Security => format!("{codename}-security"),
        };
        format!("Types: deb\nURIs: {mirror}\nSuites: {suites}\nComponents: main\n{key}\n")
    };
    mirrors.iter().map(stanza).collect()
}

/// ` package | version | mirror suite/component architecture Packages`, newest first.
fn parse_madison(text: &str) -> Vec<Candidate> {
    text.lines()
        .filter_map(|line| {
            let mut columns = line.split('|').map(str::trim);
            let version = columns.nth(1)?.to_owned();
            let suite = columns.next()?.split_whitespace().nth(1)?.split_once('/')?.0.to_owned();
            Some(Candidate { version, suite })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mirrors_of_the_suite_are_found_among_others() {
        let text = "'http://mirror.example/debian/dists/bookworm/InRelease' mirror_InRelease 0 \n\
                    'http://mirror.example/debian/dists/bookworm-updates/InRelease' x 0 \n\
                    'http://mirror.example/security/dists/bookworm-security/InRelease' x 0 \n\
                    'http://mirror.example/debian/dists/bookworm/main/binary-amd64/Packages.xz' x 0 \n\
                    'http://other.example/dists/nodistro/InRelease' x 0 \n";
        let found = parse_uris(text, "bookworm");
        let expected = [
            ("http://mirror.example/debian".to_owned(), Suite::Release),
            ("http://mirror.example/security".to_owned(), Suite::Security),
        ];
        assert_eq!(found, BTreeSet::from(expected));
    }

    #[test]
    fn candidates_keep_their_suite() {
        let text = " qemu | 1:10.0.2~bpo12+1 | http://mirror.example/debian bookworm-backports/main amd64 Packages\n";
        let expected = Candidate { version: "1:10.0.2~bpo12+1".into(), suite: "bookworm-backports".into() };
        assert_eq!(parse_madison(text), [expected]);
    }
}
