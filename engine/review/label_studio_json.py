"""Items as Label Studio takes them: the interface people see, and tasks with pre-drawn masks.

Label Studio does not validate predictions: a wrong name or size is a mask that nobody sees. So tasks are made here from
one set of names, and checked.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from engine.masks.rle import decode_rle
from engine.review.brush import encode_brush
from engine.review.items import ReviewItem
from schemas.errors import ConfigError

MASK, KIND, VERDICT, COMMENT, IMAGE = "mask", "kind", "verdict", "comment", "image"
OBJECT = "object"
KINDS = ("salient", "entity", "part")
VERDICTS = ("correct", "fixed", "no object")
MODEL_VERSION = "gapmap"
"""What all predictions are called: Label Studio orders tasks by score only among predictions of the project's version.
Which model made them stands in the task."""
Shown = tuple[str, tuple[str, ...]]
"""The model whose masks a task shows, name@version, and their mask_ids."""

# The toolbar appears after the picture was fitted: without a place kept for it the picture is cut at all four sides.
LABEL_CONFIG = f"""<View>
  <Style>.gapmap-row {{ display: flex; gap: 12px; align-items: flex-start }} .gapmap-main {{ flex: 2 1 0; min-width: 0 }}
    .gapmap-main .lsf-object {{ padding-right: 42px }} .gapmap-main .lsf-toolbar {{ margin-right: -42px }}
    .gapmap-side {{ flex: 1 1 0; min-width: 0 }} .gapmap-side .lsf-toolbar {{ display: none }}
    .gapmap-side .lsf-richtext {{ max-height: 45vh; overflow-y: auto }} .gapmap-side .lsf-richtext br {{ display: none }}
    .gapmap-side .lsf-richtext__line {{ display: block; padding-bottom: 8px; font-size: 13px; line-height: 1.35 }}
    .lsf-detailed-region .lsf-detailed-region__meta-text:not(textarea) {{ word-break: normal; overflow-wrap: anywhere }}
  </Style>
  <View className="gapmap-row">
    <View className="gapmap-main">
      <Image name="{IMAGE}" value="$image" zoom="true" zoomControl="true" brightnessControl="true"/>
      <BrushLabels name="{MASK}" toName="{IMAGE}"><Label value="{OBJECT}" background="#0072B2"/></BrushLabels>
      <View visibleWhen="no-region-selected"><Header value="Select a mask to answer for it" size="5"/></View>
      <View visibleWhen="region-selected"><Header value="Is this mask right, and what is it?" size="5"/></View>
      <Choices name="{VERDICT}" toName="{IMAGE}" perRegion="true" choice="single" showInline="true">
        {"".join(f'<Choice value="{word}"/>' for word in VERDICTS)}
      </Choices>
      <Choices name="{KIND}" toName="{IMAGE}" perRegion="true" choice="single" showInline="true">
        {"".join(f'<Choice value="{word}"/>' for word in KINDS)}
      </Choices>
      <TextArea name="{COMMENT}" toName="{IMAGE}" placeholder="Anything we should know?" rows="1" maxSubmissions="1"/>
    </View>
    <View className="gapmap-side">
      <Header value="Where the model is unsure" size="5"/>
      <Image name="map" value="$map" zoomControl="false" selectionControl="false"/>
      <Header value="Why you are asked" size="5"/>
      <Text name="why" value="$why"/>
    </View>
  </View>
</View>"""

INSTRUCTION = (
    'Each blue mask is the model\'s. Leave it if it is right; brush or erase where it is wrong; choose "no object" if there is '
    "nothing, and add what is missing. Select a mask to say what it is: a salient object, an entity, or a part of one."
)


def make_task(item: ReviewItem, image: str, map_image: str) -> dict[str, Any]:
    """A task with its prediction.

    Args:
        item: what is asked.
        image, map_image: addresses that the annotators' browsers can open.

    Raises:
        ConfigError: a mask has no pixel or does not fit the image, so that nobody would see it.
    """
    return {"data": make_data(item, image, map_image), "predictions": [make_prediction(item)]}


def make_data(item: ReviewItem, image: str, map_image: str) -> dict[str, Any]:
    """What a task shows beside the masks, and what we know it by."""
    lines = [f"mask {place}  {mask.reason}" for place, mask in enumerate(item.masks, 1)]
    return {
        "image": image,
        "map": map_image,
        "why": "\n".join(lines),
        "item_key": item.item_key,
        "image_id": item.image_id,
        "model": item.model,
        "uncertainty": round(item.uncertainty, 4),
        "masks": len(item.masks),
        "mask_ids": [mask.mask_id for mask in item.masks],
    }


def read_shown(data: Mapping[str, Any]) -> Shown | None:
    """What a task says that it shows; None where it does not say so."""
    model, mask_ids = data.get("model"), data.get("mask_ids")
    if not isinstance(model, str) or not isinstance(mask_ids, list) or not mask_ids:
        return None
    return (model, tuple(mask_ids)) if all(isinstance(of, str) for of in mask_ids) else None


def make_prediction(item: ReviewItem) -> dict[str, Any]:
    """The masks; the score is 1 less the priority: tasks are served in its ascending order."""
    height, width = item.size
    result: list[dict[str, Any]] = []
    for place, mask in enumerate(item.masks, 1):
        drawn = decode_rle([mask.rle], height, width)[0]
        if drawn.shape != (height, width) or not drawn.any():
            raise ConfigError(
                f"The mask {mask.mask_id} has no pixel in its image of {height} x {width}. Label it again."
            )
        result.append(
            {
                "id": mask.mask_id,
                "type": "brushlabels",
                "from_name": MASK,
                "to_name": IMAGE,
                "original_width": width,
                "original_height": height,
                "image_rotation": 0,
                "score": round(1 - mask.uncertainty, 4),
                "value": {"format": "rle", "rle": encode_brush(drawn), "brushlabels": [OBJECT]},
                "meta": {"text": [f"mask {place}: {mask.reason}"]},
            }
        )
    return {"model_version": MODEL_VERSION, "score": round(1 - item.priority, 6), "result": result}
