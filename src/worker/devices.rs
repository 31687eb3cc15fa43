//! What this machine has for a worker, and why something is missing: `gan-worker devices`.

use crate::nccl;
use crate::torch;
use serde::Serialize;
use std::fmt;
use std::path::PathBuf;

/// Something that may be missing, with the reason.
#[derive(Debug, Serialize)]
#[serde(untagged)]
pub(super) enum Found<T> {
    There(T),
    Missing { missing: String },
}

impl<T, E: fmt::Display> From<Result<T, E>> for Found<T> {
    fn from(result: Result<T, E>) -> Self {
        match result {
            Ok(there) => Found::There(there),
            Err(error) => Found::Missing {
                missing: error.to_string(),
            },
        }
    }
}

impl<T: fmt::Display> fmt::Display for Found<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Found::There(there) => there.fmt(f),
            Found::Missing { missing } => write!(f, "missing: {missing}"),
        }
    }
}

/// All of it.
#[derive(Debug, Serialize)]
pub(super) struct Devices {
    cpu: Cpu,
    libtorch: Libtorch,
    /// NVIDIA's.
    driver: Found<Driver>,
    gpus: Vec<Gpu>,
    nccl: Found<Nccl>,
    /// The plug-in that hands a GPU a step as one graph.
    cuda_graphs: Found<&'static str>,
}

#[derive(Debug, Serialize)]
struct Nccl {
    version: String,
    path: PathBuf,
    /// It is the one of Ganglion's tests, and has no use for GPUs.
    stand_in: bool,
}

#[derive(Debug, Serialize)]
struct Cpu {
    model: String,
    /// Those that this process may use.
    cores: usize,
    /// Vector instructions that make a difference to libtorch, as the kernel names them.
    vector: Vec<String>,
    /// Whether bf16 is computed as such, rather than by way of f32.
    native_bf16: bool,
}

#[derive(Debug, Serialize)]
struct Libtorch {
    version: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    folder: Option<String>,
    /// libtorch's CUDA half.
    cuda: Found<LibtorchCuda>,
}

#[derive(Debug, Serialize)]
struct LibtorchCuda {
    /// GPUs that libtorch can use.
    gpus: i64,
    cudnn: bool,
}

#[derive(Debug, Serialize)]
struct Driver {
    /// The newest CUDA that it runs.
    cuda: String,
    /// Of the kernel's module.
    #[serde(skip_serializing_if = "Option::is_none")]
    version: Option<String>,
}

#[derive(Debug, Serialize)]
struct Gpu {
    /// As `--device` takes it.
    device: String,
    name: String,
    memory_bytes: u64,
    compute_capability: String,
    multiprocessors: i32,
}

impl Devices {
    /// Looks at everything.
    pub(super) fn found() -> Self {
        // Before anything else: libtorch asks once whether there is CUDA.
        let cuda = match torch::why_no_cuda() {
            None => Found::There(LibtorchCuda {
                gpus: tch::Cuda::device_count(),
                cudnn: tch::Cuda::cudnn_is_available(),
            }),
            Some(why) => Found::Missing {
                missing: format!("{why}; GAN_CUDA=1 make setup gets it"),
            },
        };
        let description = torch::device_description(tch::Device::Cpu).ok();
        let (driver, gpus) = match torch::Driver::open() {
            Ok(driver) => (Found::from(about(&driver)), gpus(&driver)),
            Err(error) => (Found::from(Err(error)), Vec::new()),
        };
        Self {
            cpu: Cpu::found(description.as_ref().map(|found| found.model.as_str())),
            libtorch: Libtorch {
                version: description.map_or_else(String::new, |found| found.libtorch),
                folder: folder_of("libtorch_cpu.so"),
                cuda,
            },
            driver,
            gpus,
            cuda_graphs: torch::graphs_available().map(|()| "loaded").into(),
            nccl: nccl::Library::load()
                .map(|library| Nccl {
                    version: library.version_text(),
                    path: library.path().to_owned(),
                    stand_in: library.is_stand_in(),
                })
                .into(),
        }
    }
}

fn about(driver: &torch::Driver) -> Result<Driver, torch::DriverError> {
    let module = std::fs::read_to_string("/proc/driver/nvidia/version").ok();
    Ok(Driver {
        cuda: driver.cuda()?,
        version: module.as_deref().and_then(module_version),
    })
}

/// `NVRM version: NVIDIA UNIX x86_64 Kernel Module  580.65.06  Sun Jul 27 …`, and the open one's
/// `NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.65.06  Release Build …`.
fn module_version(text: &str) -> Option<String> {
    let line = text.lines().find(|line| line.starts_with("NVRM version"))?;
    let is_version =
        |word: &&str| word.contains('.') && word.chars().all(|c| c.is_ascii_digit() || c == '.');
    line.split_whitespace().find(is_version).map(str::to_owned)
}

fn gpus(driver: &torch::Driver) -> Vec<Gpu> {
    let described = driver.gpus().unwrap_or_else(|error| {
        // The driver's line says it too, if it says nothing at all.
        tracing::warn!("the driver does not tell of its GPUs: {error}");
        Vec::new()
    });
    let gpu = |(index, gpu): (usize, torch::GpuDescription)| Gpu {
        device: format!("cuda:{index}"),
        name: gpu.name,
        memory_bytes: gpu.memory,
        compute_capability: format!("{}.{}", gpu.capability.0, gpu.capability.1),
        multiprocessors: gpu.multiprocessors,
    };
    described.into_iter().enumerate().map(gpu).collect()
}

/// Where a library lies that this process has loaded.
fn folder_of(library: &str) -> Option<String> {
    let maps = std::fs::read_to_string("/proc/self/maps").ok()?;
    let mut paths = maps
        .lines()
        .filter_map(|line| line.find('/').map(|at| &line[at..]));
    let path = paths.find(|path| path.ends_with(library))?;
    path.strip_suffix(library)?
        .strip_suffix('/')
        .map(str::to_owned)
}

impl Cpu {
    /// `description` is libtorch's, for processors that have no name.
    fn found(description: Option<&str>) -> Self {
        let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let cores = std::thread::available_parallelism().map_or(1, |cores| cores.get());
        Self::read(&info, cores, description)
    }

    fn read(info: &str, cores: usize, description: Option<&str>) -> Self {
        const NOTABLE: [&str; 10] = [
            "avx2",
            "avx512f",
            "avx512_vnni",
            "avx512_bf16",
            "avx512_fp16",
            "amx_bf16",
            "asimd",
            "bf16",
            "sve",
            "sve2",
        ];
        const BF16: [&str; 3] = ["avx512_bf16", "amx_bf16", "bf16"];
        let value = |name: &str| {
            let mut of = info.lines().filter_map(|line| line.split_once(':'));
            let found = of.find(|(key, _)| key.trim() == name);
            found.map(|(_, value)| value.trim())
        };
        let flags = value("flags").or_else(|| value("Features"));
        let flags: Vec<&str> = flags.unwrap_or_default().split_whitespace().collect();
        let vector = NOTABLE.iter().filter(|name| flags.contains(name));
        Self {
            model: match (value("model name"), description) {
                (Some(name), Some(description)) => format!("{name} ({description})"),
                (Some(name), None) => name.to_owned(),
                (None, description) => description.unwrap_or("unknown").to_owned(),
            },
            cores,
            vector: vector.map(ToString::to_string).collect(),
            native_bf16: BF16.iter().any(|name| flags.contains(name)),
        }
    }
}

impl fmt::Display for Devices {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            cpu,
            libtorch,
            driver,
            gpus,
            nccl,
            cuda_graphs,
        } = self;
        writeln!(f, "cpu        {cpu}")?;
        for gpu in gpus {
            writeln!(f, "{:<10} {gpu}", gpu.device)?;
        }
        writeln!(f, "libtorch   {libtorch}")?;
        writeln!(f, "  CUDA     {}", libtorch.cuda)?;
        writeln!(f, "driver     {driver}")?;
        writeln!(f, "NCCL       {nccl}")?;
        writeln!(f, "graphs     {cuda_graphs}")
    }
}

impl fmt::Display for Cpu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { model, cores, .. } = self;
        let vector = match self.vector.as_slice() {
            [] => "no vector instructions that it knows".to_owned(),
            some => some.join(" "),
        };
        let bf16 = if self.native_bf16 {
            "computes bf16"
        } else {
            "computes bf16 by way of f32, slowly"
        };
        write!(f, "{model}, {cores} cores, {vector}; {bf16}")
    }
}

impl fmt::Display for Libtorch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let folder = self.folder.as_deref().unwrap_or("an unknown place");
        write!(f, "{} in {folder}", self.version)
    }
}

impl fmt::Display for LibtorchCuda {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { gpus, cudnn } = self;
        let cudnn = if *cudnn { "with" } else { "without" };
        write!(f, "loaded, sees {gpus} GPUs, {cudnn} cuDNN")
    }
}

impl fmt::Display for Driver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(version) = &self.version {
            write!(f, "{version}, ")?;
        }
        write!(f, "runs CUDA up to {}", self.cuda)
    }
}

impl fmt::Display for Nccl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.stand_in {
            true => " (the tests' stand-in: it works in host memory)",
            false => "",
        };
        write!(f, "{}{kind} in {}", self.version, self.path.display())
    }
}

impl fmt::Display for Gpu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            name,
            memory_bytes,
            compute_capability,
            multiprocessors,
            ..
        } = self;
        let memory = *memory_bytes as f64 / f64::from(1 << 30);
        write!(
            f,
            "{name}, {memory:.1} GiB, compute capability {compute_capability}, {multiprocessors} multiprocessors"
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_processor_that_computes_bf16_is_told_from_one_that_does_not() {
        let info =
            "processor : 0\nmodel name\t: AMD EPYC\nflags\t\t: fpu avx2 avx512f avx512_bf16\n";
        let cpu = Cpu::read(info, 2, None);
        assert_eq!(cpu.model, "AMD EPYC");
        assert_eq!(cpu.vector, ["avx2", "avx512f", "avx512_bf16"]);
        assert!(cpu.native_bf16);
        let older = Cpu::read(
            "model name : X\nflags : avx2 avx512f\n",
            2,
            Some("family 6"),
        );
        assert!(!older.native_bf16);
        assert!(
            older.to_string().contains("X (family 6), 2 cores"),
            "{older}"
        );
        let arm = Cpu::read("Features : asimd bf16 sve\n", 2, Some("aarch64"));
        assert!(arm.native_bf16 && arm.model == "aarch64");
    }

    #[test]
    fn a_kernel_modules_version_is_found_in_both_of_its_lines() {
        let closed = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  580.65.06  Sun Jul 27 2025\nGCC version: 12.3.0\n";
        assert_eq!(module_version(closed).as_deref(), Some("580.65.06"));
        let open =
            "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  570.133.20  Release Build\n";
        assert_eq!(module_version(open).as_deref(), Some("570.133.20"));
        assert_eq!(module_version("GCC version: 12.3.0"), None);
    }
}
