#include <cstddef>
#include <cstdlib>
#include <vector>

#include "kernels/add.h"
#include "kernels/run.h"
#include "parallel/mesh.h"
#include "runtime/engine.h"

int main() {
  std::vector<float> sum{1, 2};
  std::vector<float> x{10, 20};
  const auto view = [](std::vector<float>& row) {
    return jubal::TensorView(reinterpret_cast<std::byte*>(row.data()), jubal::DType::kF32, {1, 2});
  };
  jubal::RunSpecification(jubal::Add{view(sum), view(x)});
  return sum == std::vector<float>{11, 22} ? EXIT_SUCCESS : EXIT_FAILURE;
}
