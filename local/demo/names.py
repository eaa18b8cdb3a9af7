"""Given and family names of many locales, with their spelling in addresses.

A name is written `native:latin` where its script is not Latin; diacritics of Latin names are removed by the program.
Where family names differ by gender, a locale has two groups.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class LocaleNames:
    """Names of one language tag (RFC 5646) and its relative share of the customers.

    `groups` are pairs of (given names, family names), separated by spaces. `family_first` is the order in a full name,
    `separator` the text between its two parts.
    """

    locale: str
    share: int
    groups: tuple[tuple[str, str], ...]
    family_first: bool = False
    separator: str = " "


LOCALE_NAMES = (
    LocaleNames(
        "en-GB",
        190,
        (
            (
                "Amelia Oliver Isla George Harriet Noah Freya Arthur Poppy Jude Maisie Callum Imogen Rory Beatrix Ewan"
                " Niamh Rhys Saoirse Desmond",
                "Ashworth Blackwood Clarke Davies Ellis Fairbairn Gallagher Hughes Irving Jenkins Kavanagh Lockhart"
                " McAllister Norris O'Brien Pemberton Quinn Rowntree Sutherland Thackeray Underhill Vaughan Yates",
            ),
        ),
    ),
    LocaleNames(
        "de-DE",
        190,
        (
            (
                "Anna Jürgen Marlene Björn Käthe Günther Lena Matthias Sören Ursula Jonas Frieda Götz Hannelore Emil"
                " Annegret Till Mareike",
                "Müller Schröder Weiß Köhler Jäger Böhm Krüger Lindemann Strauß Bäcker Petersen Vogt Schäfer Hölderlin"
                " Brandt Grünewald Öztürk Hansen Nagel Thiel",
            ),
        ),
    ),
    LocaleNames(
        "fr-FR",
        75,
        (
            (
                "Chloé François Zoé Jérôme Amélie Benoît Hélène Théo Maëlle Cédric Inès Gaël Solène Éloïse",
                "Lefèvre Moreau Garçon Béranger Dupré Lemaître Rousseau Château Guérin Noël Bouché Marchand Peçanha"
                " Saint-Exupéry",
            ),
        ),
    ),
    LocaleNames(
        "es-ES",
        65,
        (
            (
                "Lucía Íñigo Begoña Andrés María Joaquín Núria Rubén Sofía Ángel Ximena Víctor",
                "García Muñoz Ibáñez Peña Gutiérrez Núñez Fernández Castaño Méndez Yáñez Rodríguez Ordóñez",
            ),
        ),
    ),
    LocaleNames(
        "pt-PT",
        30,
        (
            (
                "João Inês Gonçalo Conceição Tomás Mafalda Simão Beatriz",
                "Gonçalves Magalhães Simões Araújo Brandão Corrêa Leitão Falcão",
            ),
        ),
    ),
    LocaleNames(
        "it-IT",
        40,
        (
            (
                "Niccolò Chiara Ginevra Matteo Alessia Giosuè Noemi Tommaso",
                "D'Angelo Ricciardi Colò Bianchi Marinò Ferrari Esposito Greco",
            ),
        ),
    ),
    LocaleNames(
        "pl-PL",
        45,
        (
            (
                "Zofia Małgorzata Grażyna Łucja Agnieszka Bożena",
                "Wiśniewska Kowalska Wójcik Lewandowska Dąbrowska Zielińska",
            ),
            (
                "Łukasz Michał Świętosław Paweł Wojciech Błażej",
                "Wiśniewski Kowalski Wójcik Lewandowski Dąbrowski Zieliński",
            ),
        ),
    ),
    LocaleNames(
        "cs-CZ",
        30,
        (
            ("Tereza Eliška Zdeňka Růžena Kateřina", "Nováková Dvořáková Černá Procházková Němcová"),
            ("Jiří Ondřej Luboš Tomáš Zdeněk", "Novák Dvořák Černý Procházka Němec"),
        ),
    ),
    LocaleNames(
        "hu-HU", 20, (("Zsófia Bálint Réka Gergő Ágnes Lőrinc", "Szabó Tóth Kőszegi Fehér Nagy Gyöngyösi"),), True
    ),
    LocaleNames("ro-RO", 15, (("Ștefan Ioana Răzvan Mădălina Andreea", "Țăranu Ionescu Bălan Mureșan Crăciun"),)),
    LocaleNames(
        "sv-SE",
        25,
        (("Åsa Björn Märta Håkan Göran Elin", "Lindström Sjögren Åkesson Bergqvist Öberg Nyström"),),
    ),
    LocaleNames("nb-NO", 10, (("Øyvind Ingrid Håvard Åse Sølvi", "Bjørnstad Hægeland Solbakken Tøsse"),)),
    LocaleNames(
        "is-IS", 4, (("Guðrún Þóra Æsa", "Jónsdóttir Þórsdóttir"), ("Þorsteinn Ásgeir", "Jónsson Guðmundsson"))
    ),
    LocaleNames("tr-TR", 30, (("Ayşe Çağlar Işıl Oğuz Gülşen Ümit", "Yılmaz Şahin Çelik Öztürk Doğan Kılıç"),)),
    LocaleNames("vi-VN", 20, (("Hương Minh Đức Ngọc Phượng Tuấn", "Nguyễn Trần Đặng Phạm Võ"),), True),
    LocaleNames("nl-NL", 20, (("Daniël Fleur Joris Anouk Zoë", "Bakker Jansen Vermeer Cuijpers Mulder"),)),
    LocaleNames(
        "el-GR",
        30,
        (
            (
                "Ελένη:eleni Μαρία:maria Αικατερίνη:katerina Σοφία:sofia",
                "Παπαδοπούλου:papadopoulou Νικολάου:nikolaou Γεωργίου:georgiou Αλεξίου:alexiou",
            ),
            (
                "Γιώργος:giorgos Δημήτρης:dimitris Κώστας:kostas Νίκος:nikos",
                "Παπαδόπουλος:papadopoulos Νικολαΐδης:nikolaidis Βασιλείου:vasileiou Οικονόμου:oikonomou",
            ),
        ),
    ),
    LocaleNames(
        "uk-UA",
        25,
        (
            (
                "Олена:olena Оксана:oksana Ганна:hanna Тарас:taras Богдан:bohdan Юлія:yuliia",
                "Шевченко:shevchenko Коваленко:kovalenko Ґудзь:gudz Бондар:bondar Їжакевич:yizhakevych",
            ),
        ),
    ),
    LocaleNames(
        "ru-RU",
        15,
        (
            ("Анна:anna Надежда:nadezhda Юлия:yulia", "Иванова:ivanova Соколова:sokolova Щербакова:shcherbakova"),
            ("Фёдор:fedor Алексей:aleksey Пётр:petr", "Иванов:ivanov Соколов:sokolov Воробьёв:vorobyov"),
        ),
    ),
    LocaleNames(
        "bg-BG",
        8,
        (("Мария:maria Десислава:desislava", "Петрова:petrova"), ("Георги:georgi Любомир:lyubomir", "Петров:petrov")),
    ),
    LocaleNames(
        "ar-EG",
        25,
        (
            (
                "محمد:mohamed فاطمة:fatma يوسف:youssef ليلى:layla أحمد:ahmed نور:nour",
                "حسن:hassan المصري:elmasry إبراهيم:ibrahim عبدالله:abdallah السيد:elsayed",
            ),
        ),
    ),
    LocaleNames("fa-IR", 6, (("زهرا:zahra آرش:arash پریسا:parisa", "حسینی:hosseini کریمی:karimi ژاله‌پور:jalehpour"),)),
    LocaleNames(
        "he-IL", 12, (("נועה:noa איתן:eitan תמר:tamar יוסי:yossi", "כהן:cohen לוי:levi מזרחי:mizrahi פרידמן:friedman"),)
    ),
    LocaleNames(
        "hi-IN",
        20,
        (("प्रिया:priya अर्जुन:arjun लक्ष्मी:lakshmi विवेक:vivek", "शर्मा:sharma गुप्ता:gupta त्रिपाठी:tripathi सिंह:singh"),),
    ),
    LocaleNames("bn-BD", 6, (("ফারহানা:farhana রফিক:rafiq", "চৌধুরী:chowdhury রহমান:rahman"),)),
    LocaleNames("ta-IN", 6, (("மீனாட்சி:meenakshi கார்த்திக்:karthik", "சுப்பிரமணியன்:subramanian இளங்கோ:ilango"),)),
    LocaleNames(
        "zh-CN",
        20,
        (("伟:wei 秀英:xiuying 子涵:zihan 欣怡:xinyi 建国:jianguo", "王:wang 李:li 张:zhang 刘:liu 欧阳:ouyang"),),
        True,
        "",
    ),
    LocaleNames(
        "ja-JP",
        20,
        (
            (
                "さくら:sakura 翔太:shota 美咲:misaki 健一:kenichi 陽菜:hina",
                "佐藤:sato 鈴木:suzuki 髙橋:takahashi 渡邉:watanabe",
            ),
        ),
        True,
    ),
    LocaleNames(
        "ko-KR", 15, (("민준:minjun 서연:seoyeon 지후:jihu 하은:haeun", "김:kim 이:lee 박:park 최:choi"),), True, ""
    ),
    LocaleNames("th-TH", 10, (("สมชาย:somchai กนกวรรณ:kanokwan ธนพล:thanapon", "ศรีสุข:srisuk วงศ์ทอง:wongthong"),)),
    LocaleNames(
        "ka-GE", 5, (("ნინო:nino გიორგი:giorgi თამარ:tamar", "ბერიძე:beridze მაისურაძე:maisuradze კაპანაძე:kapanadze"),)
    ),
    LocaleNames("hy-AM", 4, (("Անահիտ:anahit Տիգրան:tigran", "Պետրոսյան:petrosyan Հակոբյան:hakobyan"),)),
    LocaleNames("am-ET", 3, (("ሰላም:selam ዳዊት:dawit", "ተስፋዬ:tesfaye በቀለ:bekele"),)),
)
