// A model in several safetensors files.

#include <algorithm>
#include <filesystem>

#include "model/json_text.hpp"
#include "model/mapped_file.hpp"
#include "model/safetensors.hpp"

namespace sluice::model {
namespace {

constexpr std::size_t index_bytes_max = std::size_t{64} << 20;
constexpr std::size_t files_max = 4096;
constexpr std::size_t file_name_bytes_max = 255;

/// Whether it can only be a file beside the index, whatever the system makes of it.
bool is_plain_name(std::string_view name) {
  return name.size() <= file_name_bytes_max && name.ends_with(".safetensors") &&
         !name.starts_with('.') && name.find_first_of(std::string_view("/\\\0", 3)) == name.npos;
}

}  // namespace

Result<SafetensorsIndex> parse_safetensors_index(std::string_view json, std::string_view name) {
  auto root = parse_json_object(json, name);
  if (!root) return tl::unexpected<Error>(root.error());
  const auto map = root->find("weight_map");
  if (map == root->end() || !map->is_object() || map->empty()) {
    return fail(ErrorCode::bad_file, "{}: it has no weight_map of tensors: fetch it again", name);
  }
  SafetensorsIndex index;
  for (const auto& [tensor, file] : map->items()) {
    if (!file.is_string() || !is_plain_name(file.get_ref<const std::string&>())) {
      return fail(ErrorCode::bad_file, "{}: tensor {} is said to lie in {}, which is no file name "
                  "beside it that ends in .safetensors: fetch it again", name, shown(tensor),
                  shown(file.is_string() ? file.get_ref<const std::string&>() : file.type_name()));
    }
    index.tensors.emplace_back(tensor, file.get_ref<const std::string&>());
    index.files.push_back(index.tensors.back().second);
  }
  std::sort(index.files.begin(), index.files.end());
  index.files.erase(std::unique(index.files.begin(), index.files.end()), index.files.end());
  if (index.files.size() > files_max) {
    return fail(ErrorCode::bad_file, "{}: {} files, at most {} are allowed: fetch it again", name,
                index.files.size(), files_max);
  }
  return index;
}

Result<std::vector<std::shared_ptr<const SafetensorsFile>>> open_safetensors_index(
    const std::string& path) {
  const auto text = MappedFile::open(path, index_bytes_max);
  if (!text) return tl::unexpected<Error>(text.error());
  const auto index = parse_safetensors_index(text->text(), path);
  if (!index) return tl::unexpected<Error>(index.error());
  const auto folder = std::filesystem::path(path).parent_path();
  std::vector<std::shared_ptr<const SafetensorsFile>> files;
  std::size_t held = 0;
  for (const std::string& name : index->files) {
    auto file = SafetensorsFile::open((folder / name).string());
    if (!file) return tl::unexpected<Error>(file.error());
    files.push_back(std::move(*file));
    held += files.back()->tensors().size();
  }
  for (const auto& [tensor, name] : index->tensors) {
    const auto at = std::lower_bound(index->files.begin(), index->files.end(), name);
    if (files[static_cast<std::size_t>(at - index->files.begin())]->find(tensor) == nullptr) {
      return fail(ErrorCode::bad_file, "{}: tensor {} is not in {}, where it is said to lie: the "
                  "files do not belong together, fetch them again", path, shown(tensor), name);
    }
  }
  if (held != index->tensors.size()) {
    return fail(ErrorCode::bad_file, "{}: its files hold {} tensors, it names {}: the files do not "
                "belong together, fetch them again", path, held, index->tensors.size());
  }
  return files;
}

}  // namespace sluice::model
