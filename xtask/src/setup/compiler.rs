//! The rustc that compiles the data path: found, chosen, linked by name.

use std::{
    fmt, fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result};

use super::packages;
use crate::{
    process,
    workspace::{BPF_TARGET, BPF_TOOLCHAIN},
};

/// What to do where neither way is possible.
pub const REMEDY: &str = "the data path needs a rustc that can compile `core` for the BPF target. Either
  rustup toolchain install nightly --component rust-src --component clippy
or, on Debian 12 with bookworm-security among the package sources, as root,
  apt-get install --no-install-recommends rustc-web cargo-web libstd-rust-web-dev-bpf rust-web-clippy
and run `cargo xtask setup` again";

/// Where a compiler's `core` for the BPF target comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Core {
    /// Compiled, in its sysroot.
    Precompiled,
    /// Its source is there and the compiler is a nightly, which may build it.
    Source,
    /// Nowhere.
    Missing,
}

/// A toolchain that rustup knows.
#[derive(Clone, Debug)]
pub struct Compiler {
    /// Its directory.
    pub sysroot: PathBuf,
    /// rustc's version, such as `1.96.0`.
    pub release: String,
    /// Major version of the LLVM in it; bpf-linker's has to be the same.
    pub llvm: u32,
    /// Where its `core` comes from.
    pub core: Core,
}

impl Compiler {
    /// The toolchain that rustup calls `name`.
    pub fn of(name: &str) -> Option<Self> {
        let rustc = |arguments: &[&str]| {
            let mut command = Command::new("rustup");
            // Asking must not install.
            command
                .env("RUSTUP_AUTO_INSTALL", "0")
                .args(["run", name, "rustc"])
                .args(arguments);
            process::answer(&mut command)
        };
        let (release, llvm) = parse_version(&rustc(&["-vV"])?)?;
        let sysroot = PathBuf::from(rustc(&["--print", "sysroot"])?);
        let core = core_of(&sysroot, &release);
        Some(Self {
            sysroot,
            release,
            llvm,
            core,
        })
    }

    /// Whether clippy is there.
    pub fn has_clippy(&self) -> bool {
        ["cargo-clippy", "clippy-driver"]
            .iter()
            .all(|program| self.sysroot.join("bin").join(program).exists())
    }
}

impl fmt::Display for Compiler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "rustc {} (LLVM {})", self.release, self.llvm)
    }
}

/// Release and LLVM major from the answer to `rustc -vV`.
fn parse_version(answer: &str) -> Option<(String, u32)> {
    let field = |name| {
        answer
            .lines()
            .find_map(|line| line.strip_prefix(name))
            .map(str::trim)
    };
    let llvm = field("LLVM version:")?.split('.').next()?.parse().ok()?;
    Some((field("release:")?.to_owned(), llvm))
}

fn core_of(sysroot: &Path, release: &str) -> Core {
    let rustlib = sysroot.join("lib/rustlib");
    let compiled = fs::read_dir(rustlib.join(BPF_TARGET).join("lib")).is_ok_and(|entries| {
        entries.flatten().any(|entry| {
            let name = entry.file_name();
            let name = name.to_string_lossy();
            name.starts_with("libcore-") && name.ends_with(".rlib")
        })
    });
    if compiled {
        Core::Precompiled
    } else if release.contains("nightly")
        && rustlib.join("src/rust/library/core/src/lib.rs").exists()
    {
        Core::Source
    } else {
        Core::Missing
    }
}

/// How a compiler for the data path is come by where none is linked yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Choice<'a> {
    /// Link rustup's nightly, which is there.
    Nightly(&'a Path),
    /// Install and link Debian's.
    Debian,
    /// Tell the user.
    Impossible,
}

/// Chooses. An installed nightly counts only with the source of `core`.
pub fn choose(nightly: Option<&Compiler>, debian: bool) -> Choice<'_> {
    match nightly {
        Some(nightly) if nightly.core != Core::Missing => Choice::Nightly(&nightly.sysroot),
        _ if debian => Choice::Debian,
        _ => Choice::Impossible,
    }
}

/// Names the toolchain in `sysroot` [`BPF_TOOLCHAIN`], whatever had that name.
pub fn link(sysroot: &Path) -> Result<()> {
    process::step(format!(
        "linking {} as rustup toolchain `{BPF_TOOLCHAIN}`",
        sysroot.display()
    ));
    process::run(
        Command::new("rustup")
            .args(["toolchain", "link", BPF_TOOLCHAIN])
            .arg(sysroot),
    )
}

/// Adds clippy to a compiler that lacks it.
pub fn add_clippy(compiler: &Compiler) -> Result<()> {
    if compiler.sysroot == Path::new("/usr") {
        return packages::ensure(&[packages::DEBIAN_CLIPPY], "the lints of the data path");
    }
    let name = compiler
        .sysroot
        .file_name()
        .context("the toolchain's directory has no name")?;
    process::step("adding clippy to the BPF toolchain, for `cargo xtask lint`");
    process::run(
        Command::new("rustup")
            .args(["component", "add", "clippy", "--toolchain"])
            .arg(name),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nightly(core: Core) -> Compiler {
        Compiler {
            sysroot: "/nightly".into(),
            release: "1.97.0-nightly".into(),
            llvm: 22,
            core,
        }
    }

    #[test]
    fn version_and_llvm_major_are_read_from_rustc() {
        let answer = "rustc 1.96.0 (ac68faa20 2026-05-25)\nrelease: 1.96.0\nLLVM version: 22.1.8\n";
        assert_eq!(parse_version(answer), Some(("1.96.0".to_owned(), 22)));
    }

    #[test]
    fn an_answer_without_llvm_is_no_compiler() {
        assert_eq!(parse_version("release: 1.96.0\n"), None);
    }

    #[test]
    fn nightly_with_source_comes_before_debian() {
        let nightly = nightly(Core::Source);
        assert_eq!(
            choose(Some(&nightly), true),
            Choice::Nightly(Path::new("/nightly"))
        );
    }

    #[test]
    fn nightly_without_source_is_not_usable() {
        let nightly = nightly(Core::Missing);
        assert_eq!(choose(Some(&nightly), true), Choice::Debian);
        assert_eq!(choose(Some(&nightly), false), Choice::Impossible);
    }

    #[test]
    fn a_stable_compiler_with_source_cannot_build_core() {
        let sysroot = std::env::temp_dir().join(format!("xtask-sysroot-{}", std::process::id()));
        let core = sysroot.join("lib/rustlib/src/rust/library/core/src");
        fs::create_dir_all(&core).unwrap();
        fs::write(core.join("lib.rs"), "").unwrap();
        let found = [
            core_of(&sysroot, "1.96.0"),
            core_of(&sysroot, "1.97.0-nightly"),
        ];
        fs::remove_dir_all(&sysroot).unwrap();
        assert_eq!(found, [Core::Missing, Core::Source]);
    }
}
