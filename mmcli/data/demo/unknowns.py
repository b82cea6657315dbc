"""What the assistant does not know: strangers, and things outside the world."""

from mmcli.data.demo.world import Language, terms

# People whom nobody in the world knows: for the conversations, and for the held-out questions.
STRANGERS = terms(
    "Bruno/布鲁诺, Greta/格蕾塔, Ivan/伊万, Olga/奥尔加, Pablo/巴勃罗, Ingrid/英格丽, Kevin/凯文, Laura/劳拉, "
    "Marta/玛尔塔, Nils/尼尔斯, Otto/奥托, Paula/保拉, Rita/丽塔, Stefan/斯特凡, Ursula/乌苏拉, Vera/薇拉, "
    "Walter/沃尔特, Yusuf/优素福, Zoe/佐伊, Dora/朵拉, Edgar/埃德加, Fiona/菲奥娜, Boris/鲍里斯, Helga/海尔加, "
    "Cora/科拉, Quentin/昆廷, Xenia/克谢妮娅, Abel/阿贝尔, Berta/贝尔塔, Carlos/卡洛斯, Diego/迭戈, Emil/埃米尔, "
    "Frida/弗里达, Gustav/古斯塔夫, Henrik/亨里克, Irina/伊琳娜, Jonas/约纳斯, Karl/卡尔, Linda/琳达, Milo/米洛, "
    "Nadia/娜迪娅, Oleg/奥列格, Pia/皮娅, Ralf/拉尔夫, Sonja/索尼娅, Theo/特奥, Ulla/乌拉, Viktor/维克托, "
    "Wanda/旺达, Yvonne/伊冯娜, Zelda/泽尔达"
)
HELD_OUT_STRANGERS = terms(
    "Igor/伊戈尔, Lars/拉尔斯, Monika/莫妮卡, Norbert/诺伯特, Petra/佩特拉, Rolf/罗尔夫, Silke/西尔克, Tanja/塔尼娅, "
    "Udo/乌多, Wilma/维尔玛"
)
STRANGER_REPLY: dict[Language, str] = {"en": "I don't know anyone called {}.", "zh": "我不认识叫{}的人。"}

OUTSIDE: dict[Language, tuple[str, ...]] = {
    "en": (
        "What will the weather be tomorrow?",
        "Will it rain on Sunday?",
        "How far away is the moon?",
        "How far away are the stars?",
        "Who won the football match?",
        "Who won the race in the city?",
        "What is the tallest mountain on Earth?",
        "What is the largest lake on Earth?",
        "How do I repair a car?",
        "How do I repair a bicycle?",
        "What time is it now?",
        "Can you write a computer program?",
        "How much does a house cost?",
        "How much does a ticket cost?",
        "What is the news today?",
        "Which film should I watch?",
        "Which song is the most popular?",
        "How many people live on Earth?",
        "When does the next train leave?",
        "When does the next ship leave?",
        "What is the price of gold?",
        "How do planes stay in the air?",
        "Where can I buy a telephone?",
        "Why is the sky blue?",
        "Who is the president?",
        "How deep is the sea?",
        "How old is the Earth?",
        "What is the capital of France?",
        "How does a computer work?",
    ),
    "zh": (
        "明天天气怎么样？",
        "星期天会下雨吗？",
        "月球离我们有多远？",
        "星星离我们有多远？",
        "昨天的足球赛谁赢了？",
        "城里的赛跑谁赢了？",
        "世界上最高的山是哪座？",
        "世界上最大的湖是哪个？",
        "怎么修汽车？",
        "怎么修自行车？",
        "现在几点了？",
        "你会写电脑程序吗？",
        "买一套房子要多少钱？",
        "买一张车票要多少钱？",
        "今天有什么新闻？",
        "我该看哪部电影？",
        "最流行的歌是哪一首？",
        "地球上有多少人？",
        "下一班火车几点开？",
        "下一班轮船几点开？",
        "黄金现在什么价？",
        "飞机为什么能飞起来？",
        "哪里可以买到手机？",
        "天空为什么是蓝的？",
        "总统是谁？",
        "大海有多深？",
        "地球有多少岁了？",
        "法国的首都是哪里？",
        "电脑是怎么工作的？",
    ),
}
HELD_OUT_OUTSIDE: dict[Language, tuple[str, ...]] = {
    "en": (
        "How far away is the sun?",
        "Who won the basketball match?",
        "What is the longest river on Earth?",
        "How do I repair a radio?",
        "How much does a car cost?",
        "When does the next bus leave?",
        "What is the price of silver?",
        "What is the capital of Spain?",
    ),
    "zh": (
        "太阳离我们有多远？",
        "昨天的篮球赛谁赢了？",
        "世界上最长的河是哪条？",
        "怎么修收音机？",
        "买一辆汽车要多少钱？",
        "下一班公共汽车几点开？",
        "白银现在什么价？",
        "西班牙的首都是哪里？",
    ),
}
OUTSIDE_REPLIES: dict[Language, tuple[str, ...]] = {
    "en": ("I don't know that. I only know the Green Valley.", "I am sorry, I don't know that."),
    "zh": ("这个我不知道，我只熟悉绿谷。", "抱歉，这个我不知道。"),
}
REFUSALS: dict[Language, tuple[str, ...]] = {"en": ("don't know", "do not know"), "zh": ("不知道", "不认识")}
