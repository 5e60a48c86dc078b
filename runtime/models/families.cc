#include <array>

#include "runtime/models/family.h"

namespace jubal {

std::span<const Family> Families() {
  static const std::array kFamilies{kGrok1, kMixtral};
  return kFamilies;
}

}  // namespace jubal
