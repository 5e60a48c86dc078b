#ifndef JUBAL_TESTS_RUNTIME_CHECKPOINT_SAFETENSORS_FILE_H_
#define JUBAL_TESTS_RUNTIME_CHECKPOINT_SAFETENSORS_FILE_H_

#include <cstddef>
#include <string>

namespace jubal {

/// A safetensors file of this header and this many bytes of data: 1, 2, 3 ...
inline std::string SafetensorsFile(const std::string& header, std::size_t data_size) {
  std::string file;
  for (std::size_t i = 0; i < 8; ++i) {
    file.push_back(static_cast<char>(header.size() >> (8 * i) & 0xff));
  }
  file += header;
  for (std::size_t i = 0; i < data_size; ++i) file.push_back(static_cast<char>(i + 1));
  return file;
}

}  // namespace jubal

#endif  // JUBAL_TESTS_RUNTIME_CHECKPOINT_SAFETENSORS_FILE_H_
