//! `cargo xtask setup`: installs or detects all that the build and the tests
//! need. Does nothing, in well under two seconds, where all is there.

pub mod apt;
mod compiler;
mod linker;
mod packages;

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};

use self::compiler::{Choice, Compiler, Core};
use crate::{
    process, vm,
    workspace::{self, BPF_TOOLCHAIN},
};

/// Installs what is missing and says what and why.
pub fn run() -> Result<()> {
    packages::ensure(packages::TOOLS, "programs that the build and the tests use")?;
    ensure_host_components()?;
    let compiler = ensure_compiler()?;
    let linker = linker::ensure(&compiler)?;
    eprintln!(
        "setup: all there: {} packages, {compiler} as `{BPF_TOOLCHAIN}`, {linker}",
        packages::TOOLS.len()
    );
    Ok(())
}

/// Fetches what the test machine is made of. On another system than Debian for
/// amd64 that can't be had: said once, and the suite that needs it fails.
pub fn machine() -> Result<()> {
    if !apt::is_debian() || !cfg!(target_arch = "x86_64") {
        process::step("no test machine here: it is made of Debian's packages for amd64");
        return Ok(());
    }
    let parts = vm::parts::ensure().context("the test machine")?;
    eprintln!("setup: a test machine with Linux {}", parts.version()?);
    Ok(())
}

/// Reports what is there and what is missing, and changes nothing. Fails when
/// something is missing.
pub fn check() -> Result<()> {
    let mut items = Vec::new();
    let missing = packages::missing(packages::TOOLS);
    for tool in packages::TOOLS {
        let found = !missing
            .iter()
            .any(|package| package.package == tool.package);
        items.push((
            tool.package,
            found.then(|| "installed".into()).ok_or(tool.why.to_owned()),
        ));
    }
    let sysroot = host_sysroot()?;
    for component in HOST_COMPONENTS {
        let found = component.is_in(&sysroot).then(|| "installed".into());
        items.push((component.name, found.ok_or("for `cargo xtask lint`".into())));
    }
    items.extend(check_bpf());
    items.push((
        "test machine",
        match vm::parts::Parts::find()? {
            Some(parts) => Ok(format!("Linux {}", parts.version()?)),
            None => Err("for the suite `vm`".into()),
        },
    ));
    for (item, state) in &items {
        match state {
            Ok(found) => println!("ok       {item}: {found}"),
            Err(reason) => println!("missing  {item}: {reason}"),
        }
    }
    let missing = items.iter().filter(|(_, state)| state.is_err()).count();
    if missing > 0 {
        bail!("{missing} missing; `cargo xtask setup` installs what it can");
    }
    Ok(())
}

/// A thing that is needed; what was found of it, or why it is missed.
type Item = (&'static str, std::result::Result<String, String>);

fn check_bpf() -> Vec<Item> {
    let Some(compiler) = Compiler::of(BPF_TOOLCHAIN) else {
        return vec![(
            "BPF compiler",
            Err(format!("there is no toolchain `{BPF_TOOLCHAIN}`")),
        )];
    };
    let usable = (compiler.core != Core::Missing)
        .then(|| compiler.to_string())
        .ok_or_else(|| format!("{compiler} has no `core` for {}", workspace::BPF_TARGET));
    let clippy = compiler.has_clippy().then(|| "installed".into());
    vec![
        ("BPF compiler", usable),
        (
            "clippy of the BPF compiler",
            clippy.ok_or("for `cargo xtask lint`".into()),
        ),
        (
            "bpf-linker",
            linker::state(&compiler).map(|linker| linker.to_string()),
        ),
    ]
}

/// Whether the BPF toolchain builds `core` from its source.
pub fn core_is_source() -> Result<bool> {
    let compiler = Compiler::of(BPF_TOOLCHAIN)
        .with_context(|| format!("there is no toolchain `{BPF_TOOLCHAIN}`"))?;
    Ok(compiler.core == Core::Source)
}

struct Component {
    name: &'static str,
    program: &'static str,
}

const HOST_COMPONENTS: [Component; 2] = [
    Component {
        name: "clippy",
        program: "cargo-clippy",
    },
    Component {
        name: "rustfmt",
        program: "cargo-fmt",
    },
];

impl Component {
    /// Whether the host's toolchain has it.
    fn is_in(&self, sysroot: &Path) -> bool {
        sysroot.join("bin").join(self.program).exists()
    }
}

/// Directory of the toolchain that runs this program.
fn host_sysroot() -> Result<PathBuf> {
    let mut rustc = Command::new("rustc");
    rustc
        .args(["--print", "sysroot"])
        .current_dir(workspace::root());
    process::answer(&mut rustc)
        .map(PathBuf::from)
        .context("rustc does not say where it is")
}

fn ensure_host_components() -> Result<()> {
    let sysroot = host_sysroot()?;
    for component in HOST_COMPONENTS
        .iter()
        .filter(|component| !component.is_in(&sysroot))
    {
        process::step(format!(
            "adding {} to the host toolchain, for `cargo xtask lint`",
            component.name
        ));
        process::run(
            Command::new("rustup")
                .args(["component", "add", component.name])
                .current_dir(workspace::root()),
        )?;
    }
    Ok(())
}

/// Makes sure that [`BPF_TOOLCHAIN`] names a compiler with a `core` for the
/// BPF target, and clippy.
fn ensure_compiler() -> Result<Compiler> {
    let mut compiler = match Compiler::of(BPF_TOOLCHAIN) {
        Some(compiler) if compiler.core != Core::Missing => compiler,
        _ => link_compiler()?,
    };
    if !compiler.has_clippy() {
        compiler::add_clippy(&compiler)?;
        compiler = Compiler::of(BPF_TOOLCHAIN).context("the toolchain has gone")?;
    }
    Ok(compiler)
}

/// Finds or installs a compiler and gives it the name [`BPF_TOOLCHAIN`].
fn link_compiler() -> Result<Compiler> {
    let nightly = Compiler::of("nightly");
    match compiler::choose(nightly.as_ref(), apt::is_debian()) {
        Choice::Nightly(sysroot) => {
            process::step(
                "rustup's nightly has the source of `core`: it will compile the data path",
            );
            compiler::link(sysroot)?;
        }
        Choice::Debian => {
            process::step(format!(
                "neither `{BPF_TOOLCHAIN}` nor a nightly with rust-src can compile `core` for BPF; \
                 Debian packages a rustc that has it precompiled"
            ));
            packages::ensure(packages::DEBIAN_RUST, "the compiler of the data path")
                .context(compiler::REMEDY)?;
            compiler::link(Path::new("/usr"))?;
        }
        Choice::Impossible => bail!(compiler::REMEDY),
    }
    Compiler::of(BPF_TOOLCHAIN)
        .filter(|compiler| compiler.core != Core::Missing)
        .with_context(|| {
            format!(
                "`{BPF_TOOLCHAIN}` still has no `core` for BPF: {}",
                compiler::REMEDY
            )
        })
}
