"""A storyboard: images from prompts and, once all of them are there, a video made of them."""

from fastapi import FastAPI, HTTPException
from pydantic import BaseModel

from agentflow import AgentFlow, JobSpec
from storyboard.models import Image, Storyboard, Video

app = AgentFlow(models=["storyboard.models"])
api = FastAPI(title="Storyboards", lifespan=app.lifespan)
api.mount("/agentflow", app.asgi)

PICTURES = {"image": Image, "video": Video}


class NewStoryboard(BaseModel):
    title: str
    prompts: list[str]


@api.post("/storyboards", status_code=201)
async def create(new: NewStoryboard):
    async with app.transaction() as tx:  # the rows and the jobs: all of them, or none
        board = await Storyboard.create(title=new.title, using_db=tx)
        for prompt in new.prompts:
            image = await Image.create(storyboard=board, prompt=prompt, using_db=tx)
            await app.submit(
                "replicate.predict",
                {"model": "black-forest-labs/flux-schnell", "input": {"prompt": prompt}},
                entity=f"image:{image.id}",
                using_db=tx,
            )
    return await show(board.id)


@app.on("replicate.predict", "succeeded")
async def save(event, tx):
    job = event.job
    picture = await PICTURES[job.entity_type].get(id=job.entity_id, using_db=tx)
    picture.file, picture.problem = event.result.artifacts[0].id, None
    await picture.save(using_db=tx)
    return await next_step(picture.storyboard_id, tx)


async def next_step(board_id, tx):
    """The video's job, if the last image came. No two can be the last: handlers run one by one."""
    images = await Image.filter(storyboard_id=board_id).order_by("id").using_db(tx)
    if not all(image.file for image in images):
        return None
    video, new = await Video.get_or_create(storyboard_id=board_id, using_db=tx)
    if not new:  # this was the video, or an image made once more
        return None
    board = await Storyboard.get(id=board_id, using_db=tx)
    files = [image.file for image in images]
    input = {"model": "acme/slideshow", "input": {"prompt": board.title, "images": files}}
    return JobSpec("replicate.predict", input, entity=f"video:{video.id}")


@app.on("replicate.predict", "failed")
@app.on("replicate.predict", "expired")
@app.on("replicate.predict", "canceled")
async def note(event, tx):
    problem = event.error.message if event.error else event.kind
    pictures = PICTURES[event.job.entity_type].filter(id=event.job.entity_id)
    await pictures.using_db(tx).update(problem=problem)


@api.get("/storyboards/{id}")
async def show(id: int):
    board = await Storyboard.get_or_none(id=id)
    if board is None:
        raise HTTPException(404, "There is no such storyboard")
    images = await Image.filter(storyboard_id=id).order_by("id")
    video = await Video.get_or_none(storyboard_id=id)
    return {
        "id": id,
        "title": board.title,
        "images": [{"prompt": image.prompt, **shown(image)} for image in images],
        "video": shown(video) if video else None,
    }


def shown(picture):
    url = f"/agentflow/v1/artifacts/{picture.file}" if picture.file else None
    return {"url": url, "problem": picture.problem}
