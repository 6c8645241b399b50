// Shows which backends a program finds, and what it says of those it cannot use: pretended drivers
// and plugins (tests/kernels/plugins) stand for every state that a machine can be in.

#include "kernels/backends.hpp"

#include <boost/test/unit_test.hpp>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include "kernels/sum_probe.hpp"
#include "tests/kernels/harness.hpp"
#include "tests/places.hpp"

namespace {

using namespace sluice;
using namespace sluice::kernels;
using sluice::kernels::test::require;
namespace fs = std::filesystem;

std::string pretended(const std::string& file) { return tests::plugins_folder() + "/" + file; }
std::string working_driver() { return pretended("libdriver_ok.so"); }

/// `folder` is one of the pretended plugins'; "" has none.
BackendSearch with(const std::string& driver, const std::string& folder) {
  return {driver, {pretended(folder)}};
}

/// A folder with a file that is named as the plugin, for as long as this lives.
class PluginFolder {
 public:
  PluginFolder() {
    std::string made = (fs::temp_directory_path() / "sluice-plugin-XXXXXX").string();
    BOOST_REQUIRE(::mkdtemp(made.data()) != nullptr);
    folder_ = made;
  }
  ~PluginFolder() { fs::remove_all(folder_); }
  PluginFolder(const PluginFolder&) = delete;
  PluginFolder& operator=(const PluginFolder&) = delete;

  std::string path() const { return folder_.string(); }
  std::string file() const { return (folder_ / "libsluice_cuda.so").string(); }

 private:
  fs::path folder_;
};

BackendStatus cuda_status(const BackendSearch& search) {
  auto found = list_backends(search);
  BOOST_REQUIRE(found.size() == 2);
  BOOST_TEST(found[0].name == "cpu");
  BOOST_TEST(found[0].unusable == "");
  BOOST_TEST(!found[0].devices.at(0).empty());
  BOOST_TEST(found[1].name == "cuda");
  return found[1];
}

void ignore(StepResult&&) {}

}  // namespace

BOOST_AUTO_TEST_SUITE(backends)

BOOST_AUTO_TEST_CASE(what_cannot_be_used_says_why_and_what_to_do) {
  const PluginFolder text;
  std::ofstream(text.file()) << "no shared object";
  struct Case {
    BackendSearch search;
    bool hardware;
    std::vector<std::string> said;
  };
  const std::vector<Case> cases = {
      {with(pretended("libdriver_no_device.so"), "good"), false,
       {"sees no device", "CUDA_VISIBLE_DEVICES"}},
      {with(pretended("libdriver_broken.so"), "good"), true,
       {"does not start", "803", "pretended", "nvidia-smi"}},
      {with(text.file(), "good"), false, {}},
      {with("libm.so.6", "good"), false, {"libm.so.6 is no NVIDIA driver"}},
      {with(working_driver(), ""), true,
       {"libsluice_cuda.so is not in " + tests::plugins_folder(), "archive"}},
      {{working_driver(), {text.path()}}, true, {text.file(), "does not load", "install it anew"}},
      {with(working_driver(), "empty"), true, {"no plugin of sluice"}},
      {with(working_driver(), "other_abi"), true, {"version 999", "version 1", "one archive"}},
      {with(working_driver(), "other_build"), true, {"another build (feedfacefeedface"}},
      {with(working_driver(), "newer_driver"), true, {"CUDA 12.4", "needs 13.0", "update"}},
  };
  for (const auto& [search, hardware, said] : cases) {
    const auto status = cuda_status(search);
    BOOST_TEST_CONTEXT(status.unusable) {
      BOOST_TEST(!status.unusable.empty());
      BOOST_TEST(status.unusable.find('\n') == std::string::npos);
      BOOST_TEST(status.devices.empty());
      for (const auto& part : said)
        BOOST_TEST(status.unusable.find(part) != std::string::npos, part);
      BOOST_TEST(to_text(status) == "cuda  unusable: " + status.unusable);
      if (search.driver != text.file()) BOOST_TEST(status.hardware == hardware);

      // "auto" goes on without it, and speaks of it only where there is hardware to miss.
      const auto chosen = require(choose_backend("auto", search));
      BOOST_TEST(chosen.name == "cpu");
      BOOST_TEST(chosen.note.empty() == !status.hardware);
      if (status.hardware) BOOST_TEST(chosen.note.ends_with(status.unusable));
      BOOST_TEST(require(make_backend("auto", {.threads = 1}, ignore, search))->device().backend ==
                 "cpu");

      // Asked for by name, it is an error.
      const auto named = make_backend("cuda", {}, ignore, search);
      BOOST_REQUIRE(!named);
      BOOST_TEST(to_string(named.error().code) == "unsupported");
      BOOST_TEST(named.error().message.ends_with(status.unusable));
    }
  }
}

BOOST_AUTO_TEST_CASE(a_machine_without_a_driver_loads_no_plugin) {
  const PluginFolder unwanted;
  fs::copy_file(pretended("good/libsluice_cuda.so"), unwanted.file());
  const BackendSearch search{"libno-such-driver.so.1", {unwanted.path()}};
  const auto status = cuda_status(search);
  BOOST_TEST(status.unusable.find("libno-such-driver.so.1") != std::string::npos);
  const std::string note = require(choose_backend("auto", search)).note;
  if (status.hardware) {  // a GPU host, its driver hidden by the name above
    BOOST_TEST(status.unusable.starts_with("there is an NVIDIA device, but"));
    BOOST_TEST(note.ends_with(status.unusable));
  } else {
    BOOST_TEST(status.unusable.starts_with("no NVIDIA driver on this machine"));
    BOOST_TEST(note == "");
  }
  std::ifstream maps("/proc/self/maps");
  const std::string mapped{std::istreambuf_iterator<char>(maps), {}};
  BOOST_TEST(mapped.find(fs::current_path().root_path()) != std::string::npos);
  BOOST_TEST(mapped.find(unwanted.path()) == std::string::npos);
}

BOOST_AUTO_TEST_CASE(a_usable_plugin_is_what_auto_takes) {
  const auto search = with(working_driver(), "good");
  const auto status = cuda_status(search);
  BOOST_REQUIRE_EQUAL(to_text(status), "cuda  usable: Pretend 1; 2");
  for (const char* name : {"auto", "cuda"}) {
    const auto chosen = require(choose_backend(name, search));
    BOOST_REQUIRE_EQUAL(chosen.name, "cuda");
    BOOST_TEST(chosen.note == "");
    // Objects and functions cross the border both ways.
    Ticket done = 0;
    auto backend = require(make_backend(
        name, {.device = 1}, [&](StepResult&& result) { done = result.ticket; }, search));
    BOOST_REQUIRE_EQUAL(backend->device().backend, "instant");  // another has no such program
    Batch batch;
    SlotOpen open;
    open.slot = {0, 1};
    open.tokens = {1, 2, 3};
    open.prompt_tokens = 3;
    batch.opens = {open};
    Segment segment;
    segment.slot = {0, 1};
    segment.rows = 3;
    segment.sample = true;
    batch.segments = {segment};
    backend->submit({}, 7, std::move(batch));
    BOOST_TEST(done == 7U);
  }
  const auto refused = make_backend("cuda", {.device = 2}, ignore, search);
  BOOST_REQUIRE(!refused);
  BOOST_TEST(refused.error().message == "there is no device 2");
  BOOST_TEST(require(make_backend("cpu", {.threads = 1}, ignore, search))->device().backend ==
             "cpu");
}

BOOST_AUTO_TEST_CASE(an_unknown_name_is_refused_with_the_known_ones) {
  for (const char* name : {"gpu", "", "CPU", "cuda "}) {
    const auto made = make_backend(name, {}, ignore);
    BOOST_REQUIRE(!made);
    BOOST_TEST(to_string(made.error().code) == "bad_request");
    BOOST_TEST(made.error().message ==
               fmt::format("there is no backend '{}': auto, cpu and cuda are", name));
  }
}

BOOST_AUTO_TEST_CASE(sums_are_timed_by_the_plugin_or_not_at_all) {
  const SumProbe probe{{{2, 64}}};
  const auto missing = time_sums(probe, make_local_communicator(),
                                 with(pretended("libdriver_no_device.so"), "good"));
  BOOST_REQUIRE(!missing);
  BOOST_CHECK(missing.error().code == ErrorCode::unsupported);
  BOOST_TEST(missing.error().message.find("sees no device") != std::string::npos);
  const auto found = time_sums(probe, make_local_communicator(), with(working_driver(), "good"));
  BOOST_REQUIRE(found.has_value());
  BOOST_TEST(found->collectives == "one rank");
  BOOST_TEST(found->times.at(0).shape.rows == 2U);
}

BOOST_AUTO_TEST_SUITE_END()
