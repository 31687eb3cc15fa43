//! Compiles the protocol and, with the feature `torch`, the C++ shim.

use std::error::Error;
use std::path::PathBuf;

fn main() -> Result<(), Box<dyn Error>> {
    protocol()?;
    #[cfg(feature = "torch")]
    {
        shim()?;
        graphs()?;
    }
    Ok(())
}

/// Compiles `proto/` in pure Rust: no protoc on the machine is needed.
fn protocol() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=proto");
    let descriptors = protox::compile(["ganglion/v1/ganglion.proto"], ["proto"])?;
    let out = PathBuf::from(std::env::var("OUT_DIR")?);
    std::fs::write(
        out.join("ganglion.v1.descriptors.bin"),
        prost::Message::encode_to_vec(&descriptors),
    )?;
    // One encoding serves all workers of a generation: a message holds a share of it, no copy.
    tonic_prost_build::configure()
        .bytes(".ganglion.v1.Assignment.members")
        .bytes(".ganglion.v1.MembersPart.part")
        .skip_debug([".ganglion.v1.Assignment"]) // it holds a secret: src/proto.rs
        .compile_fds(descriptors)?;
    Ok(())
}

/// Compiles the C++ files of `src/torch` against the headers of the libtorch that torch-sys found, and
/// writes where that libtorch lies into the binaries, so that they run without LD_LIBRARY_PATH.
#[cfg(feature = "torch")]
fn shim() -> Result<(), Box<dyn Error>> {
    for file in [
        "shim.cpp",
        "streams.cpp",
        "convolution.cpp",
        "winograd.cpp",
        "script.cpp",
        "convolution.h",
        "guarded.h",
    ] {
        println!("cargo:rerun-if-changed=src/torch/{file}");
    }
    let lib = std::env::var("DEP_TCH_LIBTORCH_LIB")?;
    let root = std::path::Path::new(&lib)
        .parent()
        .ok_or("libtorch has no parent folder")?;
    compiler(root)
        .file("src/torch/shim.cpp")
        .file("src/torch/streams.cpp")
        .file("src/torch/convolution.cpp")
        .file("src/torch/winograd.cpp")
        .file("src/torch/script.cpp")
        .compile("ganglion_shim");
    println!("cargo:rustc-link-search=native={lib}");
    // A binary that was copied beside a `lib` folder finds its libtorch there first.
    println!("cargo:rustc-link-arg=-Wl,-rpath,$ORIGIN/../lib:{lib}");
    Ok(())
}

/// What C++ is compiled with against the libtorch in `root`.
#[cfg(feature = "torch")]
fn compiler(root: &std::path::Path) -> cc::Build {
    let mut build = cc::Build::new();
    build
        .cpp(true)
        .std("c++17")
        .pic(true)
        .warnings(false)
        .opt_level(3) // loops over channels become vector instructions
        .include(root.join("include"))
        .include(root.join("include/torch/csrc/api/include"))
        .define("_GLIBCXX_USE_CXX11_ABI", "1");
    build
}

/// Compiles the plug-in `src/torch/graphs.cpp` into a shared object that the binary carries, if
/// CUDA's headers are there: in the folder that `GAN_CUDA_INCLUDE` names, or where
/// `deploy/libtorch.py` lays them out. Its undefined symbols are libtorch_cuda's.
#[cfg(feature = "torch")]
fn graphs() -> Result<(), Box<dyn Error>> {
    println!("cargo:rustc-check-cfg=cfg(gan_graphs)");
    println!("cargo:rerun-if-changed=src/torch/graphs.cpp");
    println!("cargo:rerun-if-env-changed=GAN_CUDA_INCLUDE");
    let lib = std::env::var("DEP_TCH_LIBTORCH_LIB")?;
    let root = std::path::Path::new(&lib)
        .parent()
        .ok_or("libtorch has no parent folder")?;
    let cuda = match std::env::var_os("GAN_CUDA_INCLUDE") {
        Some(folder) => PathBuf::from(folder),
        None => root.with_file_name("cuda").join("include"),
    };
    println!("cargo:rerun-if-changed={}", cuda.display());
    if !cuda.join("cuda_runtime_api.h").is_file() {
        println!(
            "cargo:warning=no CUDA headers in {}: built without CUDA graphs",
            cuda.display()
        );
        return Ok(());
    }
    let object = PathBuf::from(std::env::var("OUT_DIR")?).join("ganglion_graphs.so");
    let mut compile = compiler(root).include(cuda).get_compiler().to_command();
    let status = compile
        .args(["-shared", "src/torch/graphs.cpp", "-o"])
        .arg(&object)
        .status()?;
    if !status.success() {
        return Err("src/torch/graphs.cpp can't be compiled; see above".into());
    }
    println!("cargo:rustc-cfg=gan_graphs");
    println!("cargo:rustc-env=GAN_GRAPHS_PLUGIN={}", object.display());
    Ok(())
}
