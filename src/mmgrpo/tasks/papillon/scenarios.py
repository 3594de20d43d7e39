"""What the embedded queries ask for: 24 kinds of messages, each in several wordings."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Scenario:
    """Slots in braces: those of `public` take its choices in turns, all others are private and made by Faker."""

    category: str
    queries: tuple[str, ...]  # each names every private slot of the reply
    reply: str
    public: dict[str, tuple[str, ...]]


SCENARIOS = (
    Scenario(
        "work",
        (
            "Write an email to my manager {name} at {company}. I need {days} off next week because {reason}. Keep it polite and short, and sign it as {name2}.",
            "I work at {company} and have to ask my manager {name} for {days} off next week, since {reason}. Please draft the email for me, I'm {name2}.",
        ),
        "Dear {name}, I am writing to request {days} off next week because {reason}. I will make sure that my work at {company} is up to date before I leave. Thank you for your understanding. Best regards, {name2}",
        {
            "days": ("two days", "one day", "three days", "a whole week", "the afternoon"),
            "reason": (
                "my daughter has an operation", "I am moving to a new flat", "my mother is coming out of hospital",
                "I have an exam", "my car has to be repaired",
            ),
        },
    ),
    Scenario(
        "housing",
        (
            "Draft a letter to my landlord, {name}. The {thing} in my flat at {street}, {town} has been broken since {date} and nobody came. I want it repaired soon. My name is {name2}.",
            "My landlord is called {name} and the {thing} at {street} in {town} stopped working on {date}. Help me write a firm letter that asks for a repair. Signed {name2}.",
        ),
        "Dear {name}, I am writing to let you know that the {thing} in my flat at {street}, {town} has been broken since {date}. Please arrange for a repair as soon as possible. I look forward to hearing from you. Yours sincerely, {name2}",
        {"thing": ("heating", "kitchen tap", "front door lock", "boiler", "bathroom window")},
    ),
    Scenario(
        "health",
        (
            "Write a note to Dr {surname} at the clinic in {town}: I have had {symptom} for {time} and would like an appointment. My name is {name} and my phone number is {phone}.",
            "can you help me write to Dr {surname}, my doctor in {town}? i've had {symptom} for {time} and want to be seen. I'm {name}, reachable at {phone}.",
        ),
        "Dear Dr {surname}, I have had {symptom} for {time} and I would like to make an appointment at the clinic in {town}. Could you please let me know when you are available? You can reach me at {phone}. Thank you, {name}",
        {
            "symptom": ("a bad cough", "headaches", "pain in my knee", "a skin rash", "trouble sleeping"),
            "time": ("two weeks", "ten days", "a month", "several days"),
        },
    ),
    Scenario(
        "invitation",
        (
            "Please write an invitation to {first}'s {party} on {date} at {street}, {town}. There will be {food}, and guests should tell {first2} if they can come.",
            "We're throwing a {party} for {first} at {street} in {town} on {date}, with {food}. Write a cheerful invitation and ask people to reply to {first2}.",
        ),
        "You are invited! Please join us for {first}'s {party} on {date} at {street}, {town}. There will be {food} and plenty of fun for everyone. Please let {first2} know if you can come. We hope to see you there!",
        {
            "party": ("birthday party", "retirement party", "graduation party", "farewell party", "engagement party"),
            "food": ("cake and music", "a barbecue", "pizza and games", "drinks and snacks"),
        },
    ),
    Scenario(
        "complaint",
        (
            "I ordered {product} from {company} on {date}, order number {number}, and it {fault}. Write a complaint that asks for {remedy}. My name is {name}.",
            "Write to {company}: order {number} from {date} was {product}, but it {fault}. I, {name}, expect {remedy}. The tone should be firm and still friendly.",
        ),
        "Dear {company}, I am writing to complain about my order {number} of {date}. I ordered {product}, but it {fault}. I would like to ask for {remedy} as soon as possible. I look forward to your reply. Yours faithfully, {name}",
        {
            "product": ("a coffee machine", "a winter coat", "an office chair", "a pair of headphones", "a desk lamp"),
            "fault": ("arrived broken", "never arrived", "was the wrong colour", "stopped working after a day"),
            "remedy": ("a full refund", "a replacement", "my money back"),
        },
    ),
    Scenario(
        "job",
        (
            "Write a short cover letter for {name}, who applies for the position of {job} at {company} in {town}. Mention {years} of experience and the email address {email}.",
            "I'm {name}, applying for the position of {job} at {company} in {town}. I have {years} of experience. Write a brief cover letter with my email {email} at the end.",
        ),
        "Dear Hiring Manager, I am writing to apply for the position of {job} at {company} in {town}. With {years} of experience, I am confident that I would be a good fit for your team. You can contact me at {email}. Sincerely, {name}",
        {
            "job": ("nurse", "accountant", "shop assistant", "project manager", "electrician"),
            "years": ("five years", "ten years", "three years", "more than a year"),
        },
    ),
    Scenario(
        "travel",
        (
            "Write an email to {company} and ask them to change my booking {number}: I can't travel to {town} on {date} because {reason}. I want to know what it costs. Name: {name}.",
            "I booked a trip to {town} with {company} for {date}, reference {number}, but {reason}. Please write asking to change the date and what that costs. I'm {name}.",
        ),
        "Dear {company}, I have a booking to {town} on {date} with the reference {number}. Unfortunately I cannot travel on that day because {reason}. Could you please tell me how I can change the date and what it costs? Kind regards, {name}",
        {
            "reason": (
                "my son is ill", "my meeting was moved", "I broke my leg", "my passport was stolen",
                "there is a strike",
            ),
        },
    ),
    Scenario(
        "school",
        (
            "Write a message to Ms {surname}, the teacher of my {child} {first} at the school in {town}: {first} will miss {lesson} on {date} because of {reason}. From {name}.",
            "my {child} {first} can't go to {lesson} on {date} because of {reason}. write a short note to the teacher, Ms {surname}, at the school in {town}, from {name}",
        ),
        "Dear Ms {surname}, I am writing to let you know that my {child} {first} will miss {lesson} on {date} because of {reason}. Please let us know what {first} should catch up on at home. Thank you for your understanding. Kind regards, {name}",
        {
            "child": ("son", "daughter"),
            "lesson": ("the swimming lesson", "the maths test", "the whole day", "the school trip"),
            "reason": ("a fever", "a dental appointment", "a family wedding", "a stomach bug", "a hospital visit"),
        },
    ),
    Scenario(
        "money",
        (
            "Write to {company} that my account {number} was charged twice, {amount} each time, on {date}. I want the second payment back. I am {name} and my phone number is {phone}.",
            "On {date} my account {number} at {company} was charged {amount} two times. Please draft an email that asks for the money back. Name {name}, phone {phone}.",
        ),
        "Dear Sir or Madam, I am writing about my account {number}. On {date} {company} charged me {amount} twice by mistake. Please refund the second payment as soon as possible. If you have any questions, you can call me at {phone}. Sincerely, {name}",
        {"amount": ("45 pounds", "120 pounds", "18 pounds", "300 pounds", "60 pounds")},
    ),
    Scenario(
        "reference",
        (
            "I was the supervisor of {name} at {company} from {date} on. Write a reference that praises {quality} and {quality2}. It should sound warm. My name is {name2}.",
            "Please write a warm letter of recommendation for {name}, who has worked for me at {company} since {date}. Stress {quality} and {quality2}. Signed by {name2}.",
        ),
        "To whom it may concern, I am pleased to recommend {name}, who has worked with me at {company} since {date}. {name} has always impressed us with {quality} and {quality2}. I am sure that {name} will be a great addition to any team. Sincerely, {name2}",
        {
            "quality": ("hard work", "patience", "creativity", "honesty", "a sense of humour"),
            "quality2": ("good communication", "careful planning", "technical skill", "kindness to customers"),
        },
    ),
    Scenario(
        "neighbours",
        (
            "Write a friendly note to my neighbour {name} at {street}. {problem} and I can't sleep. I'd like to talk about it over coffee. Sign with {first} and add my number {phone}.",
            "My neighbour {name}, who lives at {street}, keeps me awake: {problem}. Draft a kind note that suggests talking over a coffee. I am {first}, phone {phone}.",
        ),
        "Dear {name}, I hope you are well. I am your neighbour and I wanted to let you know about a small problem at {street}: {problem} and I find it hard to sleep. Could we talk about it over a coffee? You can call me at {phone}. Best wishes, {first}",
        {
            "problem": (
                "the dog barks all night", "the music is very loud after midnight", "the washing machine runs at night",
                "the alarm of the car goes off every night", "the children run about until late",
            ),
        },
    ),
    Scenario(
        "thanks",
        (
            "Write a thank-you card to {name} in {town} for {gift}, which {first} and I got for our {event}. We use it all the time. From {first2}.",
            "{name} from {town} gave {first} and me {gift} for our {event} and we love it. Please write a thank-you card of three or four sentences, signed {first2}.",
        ),
        "Dear {name}, thank you so much for {gift}. {first} and I were very happy to receive it for our {event}, and we use it all the time. We hope to see you soon in {town}. With love, {first2}",
        {
            "gift": ("the picnic blanket", "the beautiful vase", "the cookery book", "the garden bench", "the wooden clock"),
            "event": ("wedding", "anniversary", "housewarming", "engagement"),
        },
    ),
    Scenario(
        "condolence",
        (
            "Help me write a short letter of sympathy to {name}, whose {relative} {first} died on {date} in {town}. {memory} I want it to be simple and warm. From {name2}.",
            "{first}, the {relative} of {name}, died in {town} on {date}. {memory} Please write a few warm words of sympathy from me, {name2}.",
        ),
        "Dear {name}, I am so sorry to hear about the death of your {relative} {first} on {date}. {memory} People in {town} will not forget such a kind heart. My thoughts are with you and your family at this difficult time. With deepest sympathy, {name2}",
        {
            "relative": ("cousin", "best friend", "partner", "neighbour", "godchild"),
            "memory": (
                "I will always remember our long walks.", "I will always remember the summers in the garden.",
                "I will always remember the good jokes.", "I will always remember our Sunday lunches.",
            ),
        },
    ),
    Scenario(
        "meeting",
        (
            "Write an email to {name} and {name2} of {company}: the meeting about {topic} moves from {date} to {date2}, because {reason}. Ask whether that suits them. I'm {first}.",
            "Tell {name} and {name2} at {company} that our meeting about {topic} can't be on {date} as {reason}, and propose {date2} instead. Polite email please, signed {first}.",
        ),
        "Dear {name} and {name2}, I am writing to let you know that our meeting at {company} about {topic} has been moved from {date} to {date2}, because {reason}. Please let me know if the new date works for you. Best regards, {first}",
        {
            "topic": ("the budget", "the new website", "the summer campaign", "staff training", "the office move"),
            "reason": ("the room is taken", "a colleague is ill", "the report is not ready", "the trains are not running"),
        },
    ),
    Scenario(
        "resignation",
        (
            "I'm leaving my job as {job} at {company}; my last day is {date}. Write a resignation letter to {name} that says thank you for {thanks}. My name is {name2}.",
            "Draft a resignation letter from {name2} to {name} at {company}. I resign as {job}, my last day should be {date}, and I am grateful for {thanks}.",
        ),
        "Dear {name}, please accept this letter as notice of my resignation from my position as {job} at {company}. My last day will be {date}. I am grateful for {thanks} and I will do my best to help with the handover. Yours sincerely, {name2}",
        {
            "job": ("receptionist", "software developer", "warehouse worker", "chef", "sales assistant"),
            "thanks": ("all that I have learned", "the support of the team", "five good years", "the trust in me"),
        },
    ),
    Scenario(
        "lost property",
        (
            "Write to the lost property office of {company}. I left {thing} on the {place} to {town} on {date}. My name is {name} and they can reach me at {email}.",
            "i forgot {thing} on the {place} to {town} on {date}. write an email to {company} asking if they found it. name: {name}, email: {email}",
        ),
        "Dear Sir or Madam, I believe that I left {thing} on the {place} to {town} on {date}. Could you please check whether somebody handed it in at {company}? If you find it, please contact me at {email}. Thank you very much for your help. Kind regards, {name}",
        {
            "thing": ("a black umbrella", "my grey laptop bag", "a red scarf", "a violin case", "my reading glasses"),
            "place": ("train", "bus", "night coach", "tram"),
        },
    ),
    Scenario(
        "insurance",
        (
            "Write a claim to {company} for my policy {number}. On {date} {damage} at {street} in {town}. Photos are attached. I want to know the next steps. I'm {name}.",
            "My insurer is {company}, policy {number}. On {date} {damage} at my home, {street}, {town}. Write a short claim with photos attached that asks for the next steps, signed {name}.",
        ),
        "Dear Sir or Madam, I would like to make a claim under my policy {number} with {company}. On {date} {damage} at my home at {street}, {town}. I have attached photos of the damage. Please let me know what the next steps are. Yours faithfully, {name}",
        {
            "damage": (
                "a pipe burst in the kitchen", "a storm broke two windows", "a tree fell on the garage",
                "thieves broke the back door", "a fire damaged the fence",
            ),
        },
    ),
    Scenario(
        "apology",
        (
            "Write an apology to {name}: I {mistake} on {date} in {town}, and I feel bad about it. I want to make it up with {offer}. Sign it {first}.",
            "On {date} in {town} I {mistake}, and {name} is upset. Please write a sincere apology from {first} that offers {offer} to make up for it.",
        ),
        "Dear {name}, I am very sorry that I {mistake} on {date} in {town}. It was my fault and I feel bad about it. I would like to make it up to you with {offer}. I hope that you can forgive me. Yours, {first}",
        {
            "mistake": ("missed our dinner", "forgot the rehearsal", "lost the borrowed camera", "shouted at the party", "was an hour late"),
            "offer": ("a home-made lunch", "tickets for the theatre", "a day out together", "a new book"),
        },
    ),
    Scenario(
        "event",
        (
            "Write a short announcement: {company} holds a {event} on {date} at {street}, {town}. {detail} Questions go to {name} at {phone}.",
            "We at {company} need a notice for our {event} at {street} in {town} on {date}. {detail} Contact is {name}, {phone}. Make it lively.",
        ),
        "Join us for a {event} on {date}! {company} welcomes everyone to {street}, {town}. {detail} If you have any questions, please contact {name} at {phone}. We look forward to seeing you there!",
        {
            "event": ("book fair", "charity run", "open day", "science evening", "craft market"),
            "detail": (
                "Entry is free.", "Children are welcome.", "Tickets are sold at the door.", "There is parking behind the hall.",
            ),
        },
    ),
    Scenario(
        "medical summary",
        (
            "Turn this into a clear note for a specialist: patient {name}, born {date}, of {street}, {town}, has {illness} and takes {drug} every day. Referred by Dr {surname}.",
            "Dr {surname} refers {name} of {street}, {town}, born on {date}, because of {illness}; the patient takes {drug} daily. Please write a clear referral note for a specialist.",
        ),
        "Dear colleague, thank you for seeing {name}, born on {date}, of {street}, {town}. The patient has {illness} and takes {drug} every day. I would be grateful for your assessment and advice on further treatment. Kind regards, Dr {surname}",
        {
            "illness": ("high blood pressure", "asthma", "type 2 diabetes", "chronic back pain", "migraine"),
            "drug": ("one tablet", "two different tablets", "an inhaler", "a low dose of aspirin"),
        },
    ),
    Scenario(
        "dating",
        (
            "Help me answer {first}, whom I met at {place} in {town} on {date}. I had a lovely time and want to meet again for {plan}. Light and friendly, signed {first2}.",
            "I met {first} on {date} at {place} in {town} and would love to meet again for {plan}. Write a light, friendly message from {first2}.",
        ),
        "Hi {first}, it was so nice to meet you at {place} in {town} on {date}. I had a lovely time and I would like to see you again. Would you like to meet for {plan} this weekend? Let me know! {first2}",
        {
            "place": ("a dance class", "a friend's wedding", "a pub quiz", "an art gallery", "a climbing hall"),
            "plan": ("a walk by the river", "dinner", "a film", "a cup of tea"),
        },
    ),
    Scenario(
        "tax",
        (
            "Write to the tax office in {town}: I am {name}, reference {number}, and I need more time for my tax return, until {date}, because {reason}. My address is {street}.",
            "I, {name} of {street}, can't send my tax return on time as {reason}. Draft a letter to the tax office in {town}, reference {number}, that asks for more time until {date}.",
        ),
        "Dear Sir or Madam, I am writing about my tax return with the reference {number}. I would like to request an extension until {date}, because {reason}. I would be grateful if the tax office in {town} could confirm this in writing. Yours faithfully, {name}, {street}",
        {
            "reason": (
                "some papers are still missing", "I have been in hospital", "my accountant has retired",
                "I have just moved house", "my computer was stolen",
            ),
        },
    ),
    Scenario(
        "sports club",
        (
            "I want to cancel my membership {number} at {company} in {town} from {date} on, because {reason}. Write the letter and ask for a confirmation to {email}. {name}",
            "Write a letter for {name} that ends membership {number} of {company} in {town} on {date}, since {reason}. They should confirm it by email to {email}.",
        ),
        "Dear Sir or Madam, I would like to cancel my membership {number} at {company} in {town}. The cancellation should take effect on {date}, because {reason}. Please send a confirmation to {email}. Thank you for your help. Kind regards, {name}",
        {
            "reason": (
                "I am moving away", "I have no time to train", "my back hurts too much", "the fee is too high",
                "I have found a club nearer to home",
            ),
        },
    ),
    Scenario(
        "pets",
        (
            "Write instructions for {name}, who looks after my {animal} {first} at {street} from {date} on: food {meals}, {habit}. In an emergency call {first2} at {phone}.",
            "{name} will take care of my {animal} {first} at {street} from {date}. Please write short instructions: food {meals}, {habit}, and in an emergency call {first2}, {phone}.",
        ),
        "Dear {name}, thank you for looking after my {animal} {first} at {street} from {date}. Please give {first} food {meals}. One more thing: {habit}. If there is an emergency, please call {first2} at {phone}. Thank you so much!",
        {
            "animal": ("cat", "rabbit", "parrot", "old dog", "hamster"),
            "meals": ("twice a day", "every morning", "at seven and at six", "three times a day"),
            "habit": ("fresh water matters most", "the door must stay closed", "evenings are for playing", "loud noise is frightening"),
        },
    ),
)  # fmt: skip
