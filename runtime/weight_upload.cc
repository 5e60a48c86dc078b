#include "runtime/weight_upload.h"

#include "kernels/check.h"
#include "kernels/copy.h"
#include "kernels/run.h"

namespace jubal {

WeightUpload::WeightUpload(Gpu& gpu, std::int64_t bytes, bool slabs) : bytes_(bytes) {
  for (Lane& lane : lanes_) {
    lane.pinned = gpu.AllocatePinned(bytes);
    if (slabs) lane.slab = gpu.Allocate(bytes);
    lane.stream = std::make_unique<Stream>(gpu);
  }
}

WeightUpload::Lane& WeightUpload::FilledLane(std::int64_t bytes, const Fill& fill) {
  CHECK_LE(bytes, bytes_);
  Lane& lane = lanes_[next_];
  next_ = (next_ + 1) % lanes_.size();
  lane.stream->Synchronize();
  fill(lane.pinned.get());
  return lane;
}

void WeightUpload::Send(TensorView to, const Fill& fill) {
  Lane& lane = FilledLane(to.bytes(), fill);
  Run(Copy{.out = to, .x = {lane.pinned.get(), to.dtype(), to.shape()}}, *lane.stream);
}

void WeightUpload::Send(std::int64_t bytes, const Fill& fill, const Use& use) {
  Lane& lane = FilledLane(bytes, fill);
  const Shape shape{bytes};
  Run(Copy{.out = {lane.slab.get(), DType::kU8, shape, Device::kCuda},
           .x = {lane.pinned.get(), DType::kU8, shape}},
      *lane.stream);
  use(lane.slab.get(), *lane.stream);
}

void WeightUpload::Finish() {
  for (const Lane& lane : lanes_) lane.stream->Synchronize();
}

}  // namespace jubal
