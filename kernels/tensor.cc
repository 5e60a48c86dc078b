#include "kernels/tensor.h"

namespace jubal {

std::int64_t SizeOf(DType type) {
  switch (type) {
    case DType::kU8:
    case DType::kI8:
      return 1;
    case DType::kI16:
    case DType::kF16:
    case DType::kBf16:
      return 2;
    case DType::kI32:
    case DType::kF32:
      return 4;
    case DType::kI64:
    case DType::kF64:
      return 8;
  }
  CheckFailed(__FILE__, __LINE__, "unknown dtype");
}

std::string_view NameOf(DType type) {
  switch (type) {
    case DType::kU8:
      return "u8";
    case DType::kI8:
      return "i8";
    case DType::kI16:
      return "i16";
    case DType::kI32:
      return "i32";
    case DType::kI64:
      return "i64";
    case DType::kF16:
      return "f16";
    case DType::kBf16:
      return "bf16";
    case DType::kF32:
      return "f32";
    case DType::kF64:
      return "f64";
  }
  CheckFailed(__FILE__, __LINE__, "unknown dtype");
}

}  // namespace jubal
