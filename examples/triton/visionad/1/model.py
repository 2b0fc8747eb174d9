"""VisionAD in NVIDIA's Triton Inference Server: image files in, scores, verdicts and results out."""

import json
import os

import numpy as np
import triton_python_backend_utils as triton
from visionad_runtime import Inspector, VisionADError
from visionad_runtime.images.decode import decode


class TritonPythonModel:
    """What Triton's Python backend calls."""

    def initialize(self, args):
        """Open model and bank, one engine thread an instance."""
        given = {
            k: os.path.expandvars(v["string_value"]) for k, v in json.loads(args["model_config"])["parameters"].items()
        }
        self.inspector = Inspector.open(given["model"], given["bank"], threads=int(given["threads"]))

    def execute(self, requests):
        """Answer each request, with an error of one line if an image or a class is not good."""
        self.inspector.refresh()  # a bank that was pulled meanwhile
        return [self._answer(request) for request in requests]

    def _answer(self, request):
        files = triton.get_input_tensor_by_name(request, "file").as_numpy().ravel()
        names = triton.get_input_tensor_by_name(request, "class")
        names = [None] * len(files) if names is None else [name.decode() or None for name in names.as_numpy().ravel()]
        try:
            if len(names) not in (1, len(files)):
                raise VisionADError(f"class: expected 1 or {len(files)} names, got {len(names)}")
            names = names * len(files) if len(names) == 1 else names
            results = [
                self.inspector.inspect(decode(file, "file"), class_name=name, colour="rgb")
                for file, name in zip(files, names, strict=True)
            ]
        except VisionADError as exc:
            return triton.InferenceResponse(error=triton.TritonError(str(exc), triton.TritonError.INVALID_ARG))
        texts = [json.dumps(result.to_dict("")).encode() for result in results]
        return triton.InferenceResponse(
            [
                triton.Tensor("score", np.array([result.score for result in results], np.float32)),
                triton.Tensor("verdict", np.array([result.verdict.encode() for result in results], np.object_)),
                triton.Tensor("result", np.array(texts, np.object_)),
            ]
        )

    def finalize(self):
        """Release the engine."""
        self.inspector.close()
