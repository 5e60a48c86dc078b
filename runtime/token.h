#ifndef JUBAL_RUNTIME_TOKEN_H_
#define JUBAL_RUNTIME_TOKEN_H_

#include <cstdint>

namespace jubal {

/// A row of the vocabulary, 0 ≤ id < vocabulary size.
using TokenId = std::int32_t;

}  // namespace jubal

#endif  // JUBAL_RUNTIME_TOKEN_H_
