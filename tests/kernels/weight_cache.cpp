// Shows that a start with weights that an earlier one kept computes the same bits without packing
// anything; and that a kept file which is damaged, cut, of another model, or where others may write
// is never used. Where the file system has no huge pages for files nothing is kept, which is shown
// instead.
#include "kernels/cpu/weight_cache.hpp"

#include <sys/resource.h>
#include <sys/stat.h>

#include <boost/test/unit_test.hpp>
#include <filesystem>
#include <fstream>
#include <sstream>

#include "tests/kernels/model_file.hpp"
#include "tests/kernels/tested.hpp"
#include "tests/scratch_folder.hpp"

namespace sluice::kernels::test {
namespace {

namespace fs = std::filesystem;

constexpr std::uint64_t plenty = std::uint64_t{1} << 30;

/// With some 2 MB of weights a layer.
TinyModel model_of(std::uint32_t layers = 2, unsigned seed = 1) {
  return tiny_model(
      {.format = Format::q8_0, .feed_forward = 2048, .layers = layers, .sample = false}, seed);
}

class Cache {
 public:
  explicit Cache(std::uint64_t bytes_max = plenty) : bytes_max_(bytes_max) {}

  Factory factory() const {
    return [this](Completion done) {
      return require(make_cpu_backend({2, path(), bytes_max_}, std::move(done)));
    };
  }
  std::string path() const { return folder_.file("cache/sluice"); }
  std::vector<fs::path> files() const {
    std::vector<fs::path> all;
    if (!fs::exists(path())) return all;
    for (const auto& entry : fs::directory_iterator(path())) all.push_back(entry.path());
    return all;
  }
  /// Whether the file system can keep any.
  bool works() const {
    const cpu::WeightCache cache(folder_.file("probe"), plenty);
    const bool begun = cache.begin(std::size_t{4} << 20).has_value();
    if (!begun) BOOST_TEST_MESSAGE("no huge pages for files here: nothing is kept");
    return begun;
  }

 private:
  sluice::test::ScratchFolder folder_;
  std::uint64_t bytes_max_;
};

/// Whether this process has mapped a file, be it removed since.
bool is_mapped(ino_t inode) {
  std::ifstream maps("/proc/self/maps");
  for (std::string line; std::getline(maps, line);) {
    std::istringstream fields(line);
    std::string addresses, access, offset, device;
    ino_t mapped = 0;
    fields >> addresses >> access >> offset >> device >> mapped;
    if (mapped == inode) return true;
  }
  return false;
}

ino_t inode(const fs::path& path) {
  struct stat status {};
  BOOST_REQUIRE_EQUAL(::stat(path.c_str(), &status), 0);
  return status.st_ino;
}

/// A model that was started once, and what was kept of it, if anything can be.
struct Started {
  Cache cache;
  TinyModel model = model_of();
  std::vector<float> expected = logits_of(on_cpu(2), model);
  ModelFile file{model};
  std::vector<fs::path> files;

  Started() {
    BOOST_TEST(logits_of(cache.factory(), model) == expected);
    files = cache.files();
    BOOST_REQUIRE_EQUAL(files.size(), cache.works() ? 1U : 0U);
  }
};

/// Starts with a model, and again after `harm` was done to what was kept: the same logits, from
/// weights packed anew.
template <class Harm>
void check_unused_after(Harm harm) {
  const Started started;
  const auto& [cache, model, expected, file, files] = started;
  if (files.empty()) return;
  const fs::path& kept = files.front();
  const std::ifstream open(kept);  // no other file gets its inode
  const ino_t before = inode(kept);
  harm(kept);
  Device device(cache.factory(), model);
  BOOST_TEST(!is_mapped(before));
  BOOST_TEST(logits_of(device) == expected);
}

void overwrite(const fs::path& path, std::size_t at, const std::string& text) {
  std::fstream file(path, std::ios::in | std::ios::out | std::ios::binary);
  file.seekp(static_cast<std::streamoff>(at));
  file << text;
  BOOST_REQUIRE(file.good());
}

}  // namespace

BOOST_AUTO_TEST_SUITE(weight_cache)

BOOST_AUTO_TEST_CASE(the_next_start_maps_what_was_packed) {
  const Started started;
  const auto& [cache, model, expected, file, files] = started;
  if (files.empty()) return;
  const fs::path& kept = files.front();
  const ino_t before = inode(kept);
  BOOST_TEST(!is_mapped(before));
  {
    Device device(cache.factory(), model), beside(cache.factory(), model);
    BOOST_TEST(is_mapped(before));
    BOOST_TEST(logits_of(device) == expected);
    BOOST_TEST(logits_of(beside) == expected);
  }
  BOOST_TEST(!is_mapped(before));
  BOOST_TEST(inode(kept) == before);
  BOOST_TEST(cache.files().size() == 1U);
}

BOOST_AUTO_TEST_CASE(a_program_that_brings_more_weights_has_a_file_of_its_own) {
  const Cache cache;
  TinyModel model = model_of(4);
  const ModelFile file(model);
  const std::vector<float> expected = logits_of(on_cpu(2), model);
  StepProgram half = model.program;
  half.ops.resize(half.ops.size() / 2);
  for (int i = 0; i < 2; ++i) {
    LoadedDevice device(cache.factory(), model);
    require(device.backend->record(half));
    device.record();
    BOOST_TEST(logits_of(device) == expected);
  }
  BOOST_TEST(cache.files().size() == (cache.works() ? 2U : 0U));
}

BOOST_AUTO_TEST_CASE(what_is_damaged_is_not_used) {
  check_unused_after([](const fs::path& kept) { overwrite(kept, 2'500'001, "x"); });
  check_unused_after([](const fs::path& kept) { overwrite(kept, fs::file_size(kept) - 1, "x"); });
  check_unused_after([](const fs::path& kept) { fs::resize_file(kept, 1'000'000); });
  check_unused_after([](const fs::path& kept) { fs::resize_file(kept, fs::file_size(kept) + 1); });
  check_unused_after([](const fs::path& kept) { std::ofstream(kept, std::ios::trunc).flush(); });
}

BOOST_AUTO_TEST_CASE(what_others_can_write_is_not_used) {
  check_unused_after([](const fs::path& kept) {
    fs::permissions(kept, fs::perms::others_write, fs::perm_options::add);
  });
  check_unused_after([](const fs::path& kept) {
    fs::permissions(kept.parent_path(), fs::perms::group_write, fs::perm_options::add);
  });
  check_unused_after([](const fs::path& kept) {
    fs::rename(kept, kept.parent_path() / "elsewhere");
    fs::create_symlink(kept.parent_path() / "elsewhere", kept);
  });
}

BOOST_AUTO_TEST_CASE(another_models_weights_are_not_used) {
  const Cache cache;
  TinyModel model = model_of(), other = model_of(2, 7);
  const std::vector<float> expected = logits_of(on_cpu(2), model);
  const std::vector<float> expected_other = logits_of(on_cpu(2), other);
  BOOST_REQUIRE(expected != expected_other);
  const ModelFile file(model), other_file(other);
  for (int i = 0; i < 2; ++i) {
    BOOST_TEST(logits_of(cache.factory(), model) == expected);
    BOOST_TEST(logits_of(cache.factory(), other) == expected_other);
  }
  // Written into the first one's file.
  for (std::size_t i = 0; i < model.tensors.size(); ++i) {
    Tensor changed = model.tensors[i];
    changed.bytes = other.tensors[i].bytes;
    file.mend(changed);
  }
  BOOST_TEST(logits_of(cache.factory(), model) == expected_other);
  BOOST_TEST(cache.files().size() == (cache.works() ? 3U : 0U));
}

BOOST_AUTO_TEST_CASE(what_was_not_used_for_longest_makes_room) {
  const Cache cache(std::uint64_t{13} << 20);  // of files of 4, 6, 8 and 16 MiB
  TinyModel two = model_of(2), three = model_of(3), four = model_of(4), eight = model_of(8);
  const ModelFile files[] = {ModelFile(two), ModelFile(three), ModelFile(four), ModelFile(eight)};
  logits_of(cache.factory(), two);
  if (!cache.works()) return;
  const fs::path of_two = cache.files().at(0);
  logits_of(cache.factory(), three);
  BOOST_REQUIRE_EQUAL(cache.files().size(), 2U);
  const fs::path of_three = cache.files()[cache.files()[0] == of_two ? 1 : 0];
  const auto now = fs::file_time_type::clock::now();
  fs::last_write_time(of_two, now - std::chrono::hours(2));
  fs::last_write_time(of_three, now - std::chrono::hours(1));
  logits_of(cache.factory(), two);
  logits_of(cache.factory(), four);
  BOOST_TEST(fs::exists(of_two));
  BOOST_TEST(!fs::exists(of_three));
  BOOST_TEST(cache.files().size() == 2U);
  logits_of(cache.factory(), eight);
  BOOST_TEST(cache.files().size() == 2U);
  // Made anew, a file is counted once.
  fs::resize_file(of_two, 1);
  logits_of(cache.factory(), two);
  BOOST_TEST(fs::file_size(of_two) > 1U);
  BOOST_TEST(cache.files().size() == 2U);
}

BOOST_AUTO_TEST_CASE(a_process_that_may_not_write_so_much_goes_on) {
  const Cache cache;
  TinyModel model = model_of();
  const std::vector<float> expected = logits_of(on_cpu(2), model);
  const ModelFile file(model);
  struct rlimit before {};
  BOOST_REQUIRE_EQUAL(::getrlimit(RLIMIT_FSIZE, &before), 0);
  struct rlimit less = before;
  less.rlim_cur = 1 << 20;
  BOOST_REQUIRE_EQUAL(::setrlimit(RLIMIT_FSIZE, &less), 0);
  const std::vector<float> logits = logits_of(cache.factory(), model);
  BOOST_REQUIRE_EQUAL(::setrlimit(RLIMIT_FSIZE, &before), 0);
  BOOST_TEST(logits == expected);
  BOOST_TEST(cache.files().empty());
}

BOOST_AUTO_TEST_CASE(a_model_file_cut_short_leaves_nothing_behind) {
  const Cache cache;
  TinyModel model = model_of();
  const ModelFile file(model);
  LoadedDevice device(cache.factory(), model);
  file.cut(static_cast<std::size_t>(model.tensors.back().host.data.data() - file.source.begin));
  BOOST_REQUIRE(!device.backend->record(model.program));
  BOOST_TEST(cache.files().empty());
  file.mend(model.tensors.back());
  device.record();
  BOOST_TEST(cache.files().size() == (cache.works() ? 1U : 0U));
}

BOOST_AUTO_TEST_CASE(weights_without_a_file_are_not_kept) {
  const Cache cache;
  const TinyModel model = model_of();
  BOOST_TEST(logits_of(cache.factory(), model) == logits_of(on_cpu(2), model));
  BOOST_TEST(cache.files().empty());
}

BOOST_AUTO_TEST_CASE(a_folder_that_cannot_be_made_is_in_nobodys_way) {
  const sluice::test::ScratchFolder folder;
  std::ofstream(folder.file("taken")).flush();
  TinyModel model = model_of();
  const std::vector<float> expected = logits_of(on_cpu(2), model);
  const ModelFile file(model);
  const Factory factory = [&](Completion done) {
    return require(make_cpu_backend({2, folder.file("taken/sluice"), plenty}, std::move(done)));
  };
  BOOST_TEST(logits_of(factory, model) == expected);
}

BOOST_AUTO_TEST_SUITE_END()

}  // namespace sluice::kernels::test
