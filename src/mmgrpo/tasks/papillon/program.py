"""PAPILLON (Li et al. 2025): two modules of the trusted policy, and an untrusted language model between them."""

from __future__ import annotations

from collections.abc import Callable

import dspy


class CraftRedactedRequest(dspy.Signature):
    """Write a request to an outside assistant that helps the user, and keep the user's private details out of it.

    The assistant must not learn names of people, companies or places, addresses, dates, phone or account numbers.
    Put general words in their place, and say everything else that the assistant has to know.
    """

    user_query: str = dspy.InputField()
    llm_request: str = dspy.OutputField()


class RespondToQuery(dspy.Signature):
    """Answer the user. Start from the outside assistant's response to the related request, and fill in the private
    details of the user's query that the assistant wasn't told."""

    related_llm_request: str = dspy.InputField()
    related_llm_response: str = dspy.InputField()
    user_query: str = dspy.InputField()
    response: str = dspy.OutputField()


class Papillon(dspy.Module):
    """`untrusted` is given the request and nothing else; a request without any text isn't sent."""

    def __init__(self, untrusted: Callable[[str], str]):
        super().__init__()
        self.craft_redacted_request = dspy.ChainOfThought(CraftRedactedRequest)
        self.respond_to_query = dspy.Predict(RespondToQuery)
        self.untrusted = untrusted

    def forward(self, user_query: str) -> dspy.Prediction:
        request = self.craft_redacted_request(user_query=user_query).llm_request
        answer = self.untrusted(request) if request.strip() else ""
        replied = self.respond_to_query(related_llm_request=request, related_llm_response=answer, user_query=user_query)
        return dspy.Prediction(llm_request=request, llm_response=answer, response=replied.response)
