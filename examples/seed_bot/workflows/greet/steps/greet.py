from ckworkflow import step
from ckworkflow.hooks import use_client


@step
async def greet_user(user_id: str, again: bool = False) -> None:
    user = await use_client().fetch_user(int(user_id))
    await user.send("Hello again!" if again else "Hello!")
