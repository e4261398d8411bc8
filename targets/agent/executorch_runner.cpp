// Runs an ExecuTorch .pte file natively, by the same contract as the Python runners
// (runner_core.py documents arguments, JSON and exit codes). Linked against the shared libraries of
// the executorch wheel; needs no Python, no torch and nothing else on the device.

#include <executorch/extension/data_loader/file_data_loader.h>
#include <executorch/extension/memory_allocator/malloc_memory_allocator.h>
#include <executorch/runtime/backend/interface.h>
#include <executorch/runtime/executor/program.h>
#include <executorch/runtime/kernel/operator_registry.h>
#include <executorch/runtime/platform/runtime.h>
#include <sys/resource.h>
#include <sys/stat.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <memory>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

#ifndef EDGEKIT_EXECUTORCH_VERSION
#define EDGEKIT_EXECUTORCH_VERSION "unknown"
#endif

// The wheel exports the thread pool's symbols but does not ship threadpool.h.
namespace executorch::extension::threadpool {
class ThreadPool {
 public:
  size_t get_thread_count() const;
  bool _unsafe_reset_threadpool(uint32_t num_threads);
};
ThreadPool* get_threadpool();
}  // namespace executorch::extension::threadpool

namespace {

using executorch::aten::ScalarType;
using executorch::aten::Tensor;
using executorch::aten::TensorImpl;
using executorch::extension::FileDataLoader;
using executorch::extension::MallocMemoryAllocator;
using namespace executorch::runtime;

enum Code { kOk = 0, kUsage = 64, kModel = 65, kInput = 66, kRuntime = 69, kExecution = 70 };
constexpr long kMaxRuns = 100000;   // bounds the JSON line to about one megabyte
constexpr size_t kWindow = 8;       // runs per window of the steadiness test
constexpr double kSteady = 0.02;    // two windows whose medians differ by less are steady
constexpr double kRampSeconds = 0.2;  // a CPU governor needs this long to raise the clock

struct Failure : std::runtime_error {
  Failure(Code code, const std::string& message) : std::runtime_error(message), code(code) {}
  Code code;
};

std::string describe(Error error) {
  std::ostringstream text;
  text << to_string(error) << " (0x" << std::hex << static_cast<unsigned>(error) << ")";
  return text.str();
}

long long now_ns() {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(
             std::chrono::steady_clock::now().time_since_epoch())
      .count();
}

struct Arguments {
  bool selftest = false;
  std::string model;
  long threads = 1, samples = 0, min_runs = 10, max_runs = 10000;
  double warmup_s = 0, budget_s = 0;
  std::vector<std::string> inputs, outputs, specs;
};

long parse_long(const std::string& name, const std::string& text) {
  char* end = nullptr;
  long value = std::strtol(text.c_str(), &end, 10);
  if (text.empty() || *end) throw Failure(kUsage, name + " needs an integer, not '" + text + "'");
  return value;
}

double parse_seconds(const std::string& name, const std::string& text) {
  char* end = nullptr;
  double value = std::strtod(text.c_str(), &end);
  if (text.empty() || *end || !std::isfinite(value) || value < 0)
    throw Failure(kUsage, name + " needs seconds, not '" + text + "'");
  return value;
}

Arguments parse(int argc, char** argv) {
  Arguments a;
  for (int i = 1; i < argc; ++i) {
    std::string name = argv[i];
    if (name == "--selftest") {
      a.selftest = true;
      continue;
    }
    if (i + 1 >= argc) throw Failure(kUsage, name + " needs a value");
    std::string value = argv[++i];
    if (name == "--model") a.model = value;
    else if (name == "--threads") a.threads = parse_long(name, value);
    else if (name == "--samples") a.samples = parse_long(name, value);
    else if (name == "--input") a.inputs.push_back(value);
    else if (name == "--output") a.outputs.push_back(value);
    else if (name == "--spec") a.specs.push_back(value);
    else if (name == "--warmup-s") a.warmup_s = parse_seconds(name, value);
    else if (name == "--budget-s") a.budget_s = parse_seconds(name, value);
    else if (name == "--min-runs") a.min_runs = parse_long(name, value);
    else if (name == "--max-runs") a.max_runs = parse_long(name, value);
    else throw Failure(kUsage, "unknown argument " + name);
  }
  if (a.selftest) return a;
  if (a.model.empty()) throw Failure(kUsage, "--model is required");
  if (a.threads < 1 || a.samples < 0)
    throw Failure(kUsage, "--threads must be at least 1 and --samples at least 0");
  if (a.min_runs < 1 || a.min_runs > a.max_runs || a.max_runs > kMaxRuns)
    throw Failure(kUsage, "needs 1 <= --min-runs <= --max-runs <= " + std::to_string(kMaxRuns));
  return a;
}

const char* dtype_name(ScalarType type) {
  switch (type) {
    case ScalarType::Float: return "float32";
    case ScalarType::Half: return "float16";
    case ScalarType::Long: return "int64";
    case ScalarType::Int: return "int32";
    case ScalarType::Char: return "int8";
    case ScalarType::Byte: return "uint8";
    case ScalarType::Bool: return "bool";
    default: return nullptr;
  }
}

// One input: its storage, and the tensor that shows that storage to the method.
struct Input {
  std::vector<int32_t> sizes, strides;
  std::vector<uint8_t> order;
  std::vector<char> data;
  ScalarType type;
  std::unique_ptr<TensorImpl> impl;
};

std::string join(const std::vector<int32_t>& sizes, const char* separator) {
  std::ostringstream text;
  for (size_t i = 0; i < sizes.size(); ++i) text << (i ? separator : "") << sizes[i];
  return text.str();
}

std::string tensor_json(const std::string& name, const char* dtype,
                        const std::vector<int32_t>& sizes) {
  return "{\"name\":\"" + name + "\",\"dtype\":\"" + dtype + "\",\"shape\":[" + join(sizes, ",") +
         "]}";
}

// Raw files are C-contiguous. Any other dimension order would be read as scrambled numbers.
template <typename Order>
bool contiguous(const Order& order) {
  for (size_t i = 0; i < order.size(); ++i)
    if (order[i] != i) return false;
  return true;
}

class Model {
 public:
  explicit Model(const std::string& path) {
    auto loader = FileDataLoader::from(path.c_str());
    if (!loader.ok()) throw Failure(kModel, "cannot open " + path + ": " + describe(loader.error()));
    loader_ = std::make_unique<FileDataLoader>(std::move(loader.get()));
    auto program = Program::load(loader_.get(), Program::Verification::InternalConsistency);
    if (!program.ok())
      throw Failure(kModel, "not an ExecuTorch program: " + describe(program.error()));
    program_ = std::make_unique<Program>(std::move(program.get()));
    auto meta = program_->method_meta("forward");
    if (!meta.ok()) throw Failure(kModel, "no method 'forward': " + describe(meta.error()));
    for (size_t i = 0; i < meta->num_memory_planned_buffers(); ++i) {
      auto size = meta->memory_planned_buffer_size(i);
      if (!size.ok()) throw Failure(kModel, "bad memory plan: " + describe(size.error()));
      buffers_.emplace_back(size.get());
      spans_.push_back({buffers_.back().data(), buffers_.back().size()});
    }
    planned_ = std::make_unique<HierarchicalAllocator>(
        Span<Span<uint8_t>>(spans_.data(), spans_.size()));
    memory_ = std::make_unique<MemoryManager>(&method_allocator_, planned_.get(), &temp_allocator_);
    auto method = program_->load_method("forward", memory_.get());
    if (!method.ok()) throw Failure(kModel, "cannot load the method: " + describe(method.error()));
    method_ = std::make_unique<Method>(std::move(method.get()));
    for (size_t i = 0; i < meta->num_inputs(); ++i) add_input(*meta, i);
  }

  void execute() {
    for (size_t i = 0; i < inputs.size(); ++i) {
      Error error = method_->set_input(EValue(Tensor(inputs[i].impl.get())), i);
      if (error != Error::Ok)
        throw Failure(kExecution, "set_input " + std::to_string(i) + ": " + describe(error));
    }
    Error error = method_->execute();
    if (error != Error::Ok) throw Failure(kExecution, "execute: " + describe(error));
  }

  std::vector<Tensor> outputs() const {
    std::vector<Tensor> tensors;
    for (size_t i = 0; i < method_->outputs_size(); ++i) {
      const EValue& value = method_->get_output(i);
      if (!value.isTensor()) throw Failure(kExecution, "an output is not a tensor");
      tensors.push_back(value.toTensor());
      if (!contiguous(tensors.back().dim_order()))
        throw Failure(kExecution, "output " + std::to_string(i) + " is not C-contiguous");
      if (!dtype_name(tensors.back().scalar_type()))
        throw Failure(kExecution, "output " + std::to_string(i) + " has an unknown dtype");
    }
    return tensors;
  }

  std::vector<Input> inputs;

 private:
  void add_input(const MethodMeta& meta, size_t index) {
    auto info = meta.input_tensor_meta(index);
    if (!info.ok()) throw Failure(kModel, "input " + std::to_string(index) + " is not a tensor");
    Input input;
    input.type = info->scalar_type();
    if (!dtype_name(input.type))
      throw Failure(kModel, "input " + std::to_string(index) + " has an unknown dtype");
    input.sizes.assign(info->sizes().begin(), info->sizes().end());
    input.order.assign(info->dim_order().begin(), info->dim_order().end());
    if (!contiguous(input.order))
      throw Failure(kModel, "input " + std::to_string(index) + " is not C-contiguous");
    input.strides.assign(input.sizes.size(), 1);
    for (size_t i = input.sizes.size(); i-- > 1;)
      input.strides[i - 1] = input.strides[i] * input.sizes[i];
    input.data.assign(info->nbytes(), 0);
    inputs.push_back(std::move(input));
    Input& kept = inputs.back();
    kept.impl = std::make_unique<TensorImpl>(kept.type, kept.sizes.size(), kept.sizes.data(),
                                             kept.data.data(), kept.order.data(),
                                             kept.strides.data());
  }

  std::unique_ptr<FileDataLoader> loader_;
  std::unique_ptr<Program> program_;
  std::vector<std::vector<uint8_t>> buffers_;
  std::vector<Span<uint8_t>> spans_;
  MallocMemoryAllocator method_allocator_, temp_allocator_;
  std::unique_ptr<HierarchicalAllocator> planned_;
  std::unique_ptr<MemoryManager> memory_;
  std::unique_ptr<Method> method_;
};

void check_specs(const std::vector<std::string>& specs, const Model& model) {
  if (specs.empty()) return;
  std::vector<std::string> wanted;
  for (const Input& input : model.inputs)
    wanted.push_back(std::string(dtype_name(input.type)) + ":" + join(input.sizes, "x"));
  if (specs == wanted) return;
  std::string message = "the caller feeds";
  for (const auto& spec : specs) message += " " + spec;
  message += ", the model wants";
  for (const auto& spec : wanted) message += " " + spec;
  throw Failure(kInput, message);
}

std::vector<std::ifstream> open_inputs(const Arguments& a, const Model& model) {
  std::vector<std::ifstream> files;
  if (a.samples == 0) return files;
  if (a.inputs.size() != model.inputs.size())
    throw Failure(kInput, std::to_string(a.inputs.size()) + " input files for " +
                              std::to_string(model.inputs.size()) + " inputs");
  for (size_t i = 0; i < a.inputs.size(); ++i) {
    struct stat info {};
    files.emplace_back(a.inputs[i], std::ios::binary);
    if (!files.back() || stat(a.inputs[i].c_str(), &info) != 0)
      throw Failure(kInput, "cannot read input " + a.inputs[i]);
    size_t size = static_cast<size_t>(info.st_size), one = model.inputs[i].data.size();
    if (size < one * static_cast<size_t>(a.samples) || size % one)
      throw Failure(kInput, a.inputs[i] + " has " + std::to_string(size) + " bytes; that is not " +
                                std::to_string(a.samples) + " or more samples of " +
                                std::to_string(one) + " bytes");
  }
  return files;
}

void read_sample(std::vector<std::ifstream>& files, Model& model) {
  for (size_t i = 0; i < files.size(); ++i)
    if (!files[i].read(model.inputs[i].data.data(), model.inputs[i].data.size()))
      throw Failure(kInput, "an input became shorter while it was read");
}

long long timed(Model& model) {
  long long start = now_ns();
  model.execute();
  return now_ns() - start;
}

double median(std::vector<long long> values) {
  std::sort(values.begin(), values.end());
  size_t middle = values.size() / 2;
  return values.size() % 2 ? values[middle] : (values[middle - 1] + values[middle]) / 2.0;
}

// Runs until two successive windows agree, at most `seconds`.
size_t warm_up(Model& model, double seconds) {
  long long start = now_ns();
  std::vector<long long> times;
  while (true) {
    double elapsed = (now_ns() - start) * 1e-9;
    if (elapsed >= seconds) break;
    if (times.size() >= 2 * kWindow && elapsed >= std::min(kRampSeconds, seconds)) {
      double before = median({times.end() - 2 * kWindow, times.end() - kWindow});
      double last = median({times.end() - kWindow, times.end()});
      if (std::abs(last - before) <= kSteady * before) break;
    }
    times.push_back(timed(model));
  }
  return times.size();
}

// VmHWM starts at zero with the program; ru_maxrss would include the parent's peak.
long long peak_rss_bytes() {
  std::ifstream status("/proc/self/status");
  for (std::string line; std::getline(status, line);)
    if (line.rfind("VmHWM:", 0) == 0) return std::atoll(line.c_str() + 6) * 1024;
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  return usage.ru_maxrss * 1024LL;
}

void set_threads(long threads) {
  auto* pool = executorch::extension::threadpool::get_threadpool();
  if (!pool) throw Failure(kRuntime, "the thread pool could not be started");
  if (pool->get_thread_count() != static_cast<size_t>(threads) &&
      !pool->_unsafe_reset_threadpool(static_cast<uint32_t>(threads)))
    throw Failure(kRuntime, "the thread pool refused " + std::to_string(threads) + " threads");
}

const char* kHead =
    "{\"schema\":1,\"runner\":\"executorch\",\"runner_version\":\"1\",\"runtime_version\":\""
    EDGEKIT_EXECUTORCH_VERSION "\"";

std::string selftest() {
  set_threads(1);
  auto* xnnpack = get_backend_class("XnnpackBackend");
  if (!xnnpack || !xnnpack->is_available())
    throw Failure(kRuntime, "the XNNPACK backend is not available on this CPU");
  if (get_registered_kernels().size() == 0) throw Failure(kRuntime, "no kernels are registered");
  return std::string(kHead) + ",\"selftest\":\"ok\"}\n";
}

std::string run(const Arguments& a) {
  set_threads(a.threads);
  long long start = now_ns();
  Model model(a.model);
  long long load_ns = now_ns() - start, first_ns = 0;
  check_specs(a.specs, model);
  auto files = open_inputs(a, model);
  std::vector<std::ofstream> sinks;
  std::string outputs;
  for (long i = 0; i < std::max(a.samples, 1L); ++i) {
    read_sample(files, model);
    long long elapsed = timed(model);
    auto tensors = model.outputs();
    if (i == 0) {
      first_ns = elapsed;
      if (!a.outputs.empty() && a.outputs.size() != tensors.size())
        throw Failure(kUsage, std::to_string(a.outputs.size()) + " output files for " +
                                  std::to_string(tensors.size()) + " outputs");
      for (const auto& path : a.outputs) {
        sinks.emplace_back(path, std::ios::binary | std::ios::trunc);
        if (!sinks.back()) throw Failure(kExecution, "cannot write " + path);
      }
      for (size_t k = 0; k < tensors.size(); ++k)
        outputs += (k ? "," : "") +
                   tensor_json("output_" + std::to_string(k), dtype_name(tensors[k].scalar_type()),
                               {tensors[k].sizes().begin(), tensors[k].sizes().end()});
    }
    if (a.samples)
      for (size_t k = 0; k < sinks.size(); ++k)
        sinks[k].write(static_cast<const char*>(tensors[k].const_data_ptr()), tensors[k].nbytes());
  }
  for (auto& sink : sinks) {
    sink.close();
    if (!sink) throw Failure(kExecution, "an output file could not be written");
  }
  size_t warmup_runs = 0;
  std::vector<long long> times;
  if (a.budget_s > 0) {
    for (auto& file : files) file.seekg(0);
    read_sample(files, model);
    warmup_runs = warm_up(model, a.warmup_s);
    const bool marked = std::getenv("EDGEKIT_MARK_RUNS") != nullptr;  // see runner_core.py
    long long end = now_ns() + static_cast<long long>(a.budget_s * 1e9);
    while (static_cast<long>(times.size()) < a.max_runs &&
           (static_cast<long>(times.size()) < a.min_runs || now_ns() < end)) {
      if (marked) getpriority(PRIO_PROCESS, 0);
      times.push_back(timed(model));
    }
    if (marked) getpriority(PRIO_PROCESS, 0);
  }
  std::ostringstream json;
  json << kHead << ",\"threads\":" << a.threads << ",\"load_ns\":" << load_ns
       << ",\"first_ns\":" << first_ns << ",\"latency_ns\":[";
  for (size_t i = 0; i < times.size(); ++i) json << (i ? "," : "") << times[i];
  json << "],\"warmup_runs\":" << warmup_runs << ",\"peak_rss_bytes\":" << peak_rss_bytes()
       << ",\"samples\":" << a.samples << ",\"inputs\":[";
  for (size_t i = 0; i < model.inputs.size(); ++i)
    json << (i ? "," : "")
         << tensor_json("input_" + std::to_string(i), dtype_name(model.inputs[i].type),
                        model.inputs[i].sizes);
  json << "],\"outputs\":[" << outputs << "]}\n";
  return json.str();
}

}  // namespace

int main(int argc, char** argv) {
  try {
    Arguments arguments = parse(argc, argv);
    runtime_init();
    std::fputs((arguments.selftest ? selftest() : run(arguments)).c_str(), stdout);
    return std::fflush(stdout) == 0 ? kOk : kExecution;
  } catch (const Failure& failure) {
    std::fprintf(stderr, "executorch_runner: %s\n", failure.what());
    return failure.code;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "executorch_runner: %s\n", error.what());
    return kExecution;
  }
}
