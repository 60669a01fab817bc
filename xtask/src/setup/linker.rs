//! bpf-linker: found, checked against the compiler, built where it doesn't fit.

use std::{
    fmt, fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};

use super::{
    apt,
    compiler::{Compiler, Core},
};
use crate::{
    process,
    workspace::{self, BPF_TARGET},
};

/// The version that is built; others are accepted when they work.
const VERSION: &str = "0.13.0";

/// A bpf-linker in the search path.
#[derive(Clone, Debug)]
pub struct Linker {
    version: String,
    /// Major version of its LLVM; unknown when that is linked statically.
    llvm: Option<u32>,
}

impl fmt::Display for Linker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.version)?;
        match self.llvm {
            Some(llvm) => write!(f, " (LLVM {llvm})"),
            None => f.write_str(" (LLVM inside)"),
        }
    }
}

/// The linker that works with `compiler`, or why there is none.
pub fn state(compiler: &Compiler) -> std::result::Result<Linker, String> {
    let linker = find().ok_or("there is none in the search path")?;
    if let Some(llvm) = linker.llvm
        && llvm != compiler.llvm
    {
        return Err(format!("{linker} cannot read what {compiler} writes"));
    }
    // Only a precompiled `core` can be linked against without a build of it.
    if compiler.core == Core::Precompiled {
        probe().map_err(|error| format!("{linker} fails with {compiler}: {error:#}"))?;
    }
    Ok(linker)
}

/// Makes sure that there is a linker that works with `compiler`.
pub fn ensure(compiler: &Compiler) -> Result<Linker> {
    match state(compiler) {
        Ok(linker) => return Ok(linker),
        Err(reason) => process::step(format!(
            "building bpf-linker {VERSION} (about a minute): {reason}"
        )),
    }
    let prefix = ensure_llvm(compiler.llvm)?;
    let mut command = workspace::cargo();
    command
        .args([
            "install",
            "bpf-linker",
            "--version",
            VERSION,
            "--locked",
            "--force",
        ])
        .args([
            "--no-default-features",
            "--features",
            &format!("llvm-{}", compiler.llvm),
        ])
        // Without it the build looks for libLLVM in the linker's own directories.
        .env("LLVM_PREFIX", prefix)
        // Its intermediate files have no business in this tree.
        .env_remove("CARGO_TARGET_DIR");
    process::run(&mut command).with_context(|| {
        format!(
            "bpf-linker {VERSION} may be too old for LLVM {}",
            compiler.llvm
        )
    })?;
    state(compiler)
        .map_err(|reason| anyhow::anyhow!("the bpf-linker just built does not work: {reason}"))
}

fn find() -> Option<Linker> {
    let version = process::answer(Command::new("bpf-linker").arg("--version"))?;
    let path = std::env::var_os("PATH")?;
    let binary = std::env::split_paths(&path)
        .map(|directory| directory.join("bpf-linker"))
        .find(|file| file.is_file())?;
    let libraries = process::answer(Command::new("ldd").arg(binary)).unwrap_or_default();
    Some(Linker {
        version,
        llvm: llvm_among(&libraries),
    })
}

/// LLVM's major among the libraries that ldd lists. Its file is called
/// `libLLVM.so.22.1`, up to version 17 `libLLVM-17.so.1`.
fn llvm_among(libraries: &str) -> Option<u32> {
    libraries.lines().find_map(|line| {
        let name = line.trim().strip_prefix("libLLVM")?;
        let name = name
            .strip_prefix(".so.")
            .or_else(|| name.strip_prefix('-'))?;
        let digits = name
            .find(|c: char| !c.is_ascii_digit())
            .unwrap_or(name.len());
        name[..digits].parse().ok()
    })
}

/// Compiles a small program and links it, without `core`: that is enough to
/// see whether the linker reads the compiler's bitcode, and takes no time.
fn probe() -> Result<()> {
    let directory = workspace::target_dir()?.join(format!("xtask-probe-{}", std::process::id()));
    fs::create_dir_all(&directory).with_context(|| format!("creating {}", directory.display()))?;
    let done = probe_in(&directory);
    let _ = fs::remove_dir_all(&directory);
    done
}

fn probe_in(directory: &Path) -> Result<()> {
    let source = directory.join("probe.rs");
    let bitcode = directory.join("probe.bc");
    fs::write(
        &source,
        "#![no_std]\n#[unsafe(no_mangle)]\n#[unsafe(link_section = \"xdp\")]\n\
         pub extern \"C\" fn probe() -> u32 { 2 }\n",
    )?;
    succeed(
        workspace::bpf_tool("rustc")
            .args(["--edition=2024", "--crate-type=lib", "-Copt-level=2"])
            .args(["--emit=llvm-bc", "--target", BPF_TARGET, "-o"])
            .args([&bitcode, &source]),
    )?;
    succeed(
        Command::new("bpf-linker")
            .args(["--target=bpfel", "--export=probe", "--output"])
            .args([&directory.join("probe.o"), &bitcode]),
    )
}

/// Runs `command` silently; its standard error is the error's text.
fn succeed(command: &mut Command) -> Result<()> {
    let output = command
        .output()
        .with_context(|| format!("starting {}", process::display(command)))?;
    if !output.status.success() {
        bail!("{}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}

/// Where the development files of LLVM `major` are, installed if need be.
fn ensure_llvm(major: u32) -> Result<PathBuf> {
    if let Some(prefix) = std::env::var_os("LLVM_PREFIX") {
        return Ok(prefix.into());
    }
    let prefix = PathBuf::from(format!("/usr/lib/llvm-{major}"));
    if apt::is_debian() {
        let packages = [
            format!("llvm-{major}-dev"),
            format!("libpolly-{major}-dev"),
            "libzstd-dev".into(),
            "zlib1g-dev".into(),
        ];
        let packages: Vec<_> = packages.iter().map(String::as_str).collect();
        let missing = apt::missing(&packages);
        if !missing.is_empty() {
            if !process::is_root() {
                bail!(
                    "installing needs root; as root, run: apt-get install --no-install-recommends {}",
                    missing.join(" ")
                );
            }
            process::step(format!(
                "installing {}, which bpf-linker is built with",
                missing.join(" ")
            ));
            apt::update()?;
            apt::install(&missing)?;
        }
    }
    if !Path::new(&prefix).exists() {
        bail!(
            "bpf-linker needs the development files of LLVM {major}: install them and set LLVM_PREFIX to where \
             they are, or put a bpf-linker that was built with LLVM {major} in the search path; then run setup again"
        );
    }
    Ok(prefix)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_llvm_major_is_read_from_the_library_names_of_all_versions() {
        let libraries =
            |llvm: &str| format!("\tlinux-vdso.so.1 (0x0)\n\t{llvm} => /usr/lib/{llvm} (0x0)\n");
        assert_eq!(llvm_among(&libraries("libLLVM.so.22.1")), Some(22));
        assert_eq!(llvm_among(&libraries("libLLVM-17.so.1")), Some(17));
        assert_eq!(
            llvm_among(&libraries("libLLVM.so.22.1-rust-1.95.0-stable")),
            Some(22)
        );
    }

    #[test]
    fn a_statically_linked_llvm_has_no_known_major() {
        assert_eq!(llvm_among("\tstatically linked\n"), None);
        assert_eq!(llvm_among("\tlibc.so.6 => /lib/libc.so.6 (0x0)\n"), None);
    }
}
