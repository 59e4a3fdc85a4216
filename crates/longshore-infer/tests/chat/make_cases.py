"""Writes cases.json: small templates of our own, each rendered by transformers (5.23, Jinja2 3.1.6).

    python make_cases.py

`expected` is the text, or null where transformers raises. The date is fixed to TODAY for `strftime_now`.
"""

import datetime
import json
import pathlib

from transformers.utils import chat_template_utils
from transformers.utils.chat_template_utils import render_jinja_template

TODAY = datetime.datetime(2026, 11, 22)
USER = [{"role": "user", "content": "hi"}]
VALUES = {
    "t": True,
    "f": False,
    "n": None,
    "i": -3,
    "big": 12345678901234567890,
    "x": 1.0,
    "s": 'it\'s "q" <b> & é\u0000\u007f\u200b\ue000😀\n\t\\',
    "q": "it's",
    "l": [1, "a", None, True, [2.5, {}], []],
    "d": {"z": 1, "a": {"k": [False, "v"]}, "m": {}, "é": []},
}
FLOATS = [0.0, -0.0, 1.5, 1e16, 1e15, 123456789012345680.0, 1.5e-7, 0.0001, 0.00001, 1e300, -2.5e-10, 0.1, 1e22, 5e-324, 3.0]
MARKUP = "a\n  {% if true %}  \n  b\n  {%- endif %}\n\t{# c #}\nd {% if true %} e\n{% endif %}\n{{ 1 }}\n{{- 2 -}}\n  3\n   {%+ if true %}x{% endif +%}\ny\n"

# name -> (template, extra arguments)
TEMPLATES = {
    "blocks_are_trimmed": (MARKUP, {}),
    "windows_line_ends": (MARKUP.replace("\n", "\r\n"), {}),
    "old_mac_line_ends": ("a\rb{% if true %}\rc{% endif %}", {}),
    "one_last_line_end_is_cut": ("a\n\n", {}),
    "none_is_not_iterable": (
        "{{ tools is iterable }} {{ n is iterable }} {{ l is iterable }} {{ s is iterable }} {{ d is iterable }} "
        "{{ i is iterable }} {{ nothing is iterable }} {% if tools is iterable and tools | length > 0 %}x{% endif %}",
        {},
    ),
    "sequences": (
        "{{ n is sequence }} {{ l is sequence }} {{ s is sequence }} {{ d is sequence }} {{ i is sequence }} "
        "{{ nothing is sequence }} {{ (1, 2) is sequence }}",
        {},
    ),
    "kinds": (
        "{% for v in [t, n, i, x, s, l, d] %}{{ v is string }},{{ v is mapping }},{{ v is number }},{{ v is integer }},"
        "{{ v is float }},{{ v is boolean }},{{ v is none }},{{ v is defined }},{{ v is true }},{{ v is false }};{% endfor %}",
        {},
    ),
    "json": ("{{ d | tojson }}|{{ l | tojson }}|{{ s | tojson }}|{{ big | tojson }}|{{ n|tojson }}|{{ t|tojson }}", {}),
    "json_indent": ("{{ d | tojson(indent=2) }}|{{ l | tojson(indent=4) }}|{{ {} | tojson(indent=2) }}", {}),
    "json_indent_text": ("{{ d | tojson(indent='--') }}|{{ d | tojson(indent=0) }}|{{ d | tojson(indent=none) }}", {}),
    "json_separators": ("{{ d | tojson(separators=(',', ':')) }}|{{ l | tojson(separators=['; ', '=']) }}", {}),
    "json_separators_indent": ("{{ d | tojson(separators=(', ', ': '), indent=1) }}", {}),
    "json_sort_keys": ("{{ d | tojson(sort_keys=true) }}|{{ d | tojson(sort_keys=True, indent=2) }}", {}),
    "json_ascii": ("{{ s | tojson(ensure_ascii=true) }}|{{ s | tojson(ensure_ascii=False) }}|{{ d | tojson(true) }}", {}),
    "json_keys": ("{{ {1: 2, none: 3, true: 4, 1.5: 5} | tojson }}", {}),
    "json_tuple": ("{{ (1, 'a') | tojson }}|{{ (1,) | tojson }}|{{ messages[0:1] | tojson }}", {}),
    "json_undefined": ("{{ nothing | tojson }}", {}),
    "json_of_a_list_from_a_filter": ("{{ [3, 1, 2] | sort | tojson }}{{ d | list | tojson }}{{ 'a b'.split() | tojson }}"
                                     "{{ [1, 2] | map('string') | list | tojson }}{{ d.items() | list | tojson }}", {}),
    "json_unknown_option": ("{{ d | tojson(color=true) }}", {}),
    "floats": ("{% for v in floats %}{{ v }} {{ v | tojson }} {{ v | string }} {{ [v] }};{% endfor %}", {"floats": FLOATS}),
    "printing": ("{{ t }} {{ n }} {{ f }} {{ i }} {{ big }} {{ l }} {{ d }} {{ nothing }} {{ x }} {{ (1, 'a') }} {{ (1,) }}", {}),
    "string_filter": ("{{ t|string }} {{ n|string }} {{ l|string }} {{ d|string }} {{ q|string }} {{ [q]|string }} {{ nothing|string }}", {}),
    "repr_of_texts": ("{{ [s] }}{{ [q] }}{{ ['\"'] }}{{ ['é\u0301'] }}{{ ['\u0301'] }}{{ ['\u00ad\u00a0\u2028'] }}", {}),
    "concatenation": ("{{ 'a' ~ t ~ n ~ i ~ x ~ 'é' }}|{{ 'a' + q }}|{{ [1] + [2] }}|{{ 'ab' * 3 }}", {}),
    "concatenation_of_lists": ("{{ 'a' ~ l }}|{{ 'b' ~ d }}", {}),
    "concatenation_of_floats": ("{% for v in floats %}{{ '' ~ v }} {% endfor %}", {"floats": [0.0, 1.5, 0.1, -2.25, 1e15]}),
    "join": ("{{ [t, n, x, 'a'] | join(',') }}|{{ messages | join(',', attribute='role') }}|{{ '-'.join(['a', 'b']) }}", {}),
    "text_plus_none": ("{{ 'a' + n }}", {}),
    "text_plus_list": ("{{ 'a' + l }}", {}),
    "generation": ("a\n  {% generation %}\n{{ messages[0].content }}\n  {% endgeneration %}\nb", {}),
    "generation_minus": ("a \n {%- generation -%}\n {{ messages[0].content }} \n {%- endgeneration -%} \n b", {}),
    "generation_is_a_scope": ("{% generation %}{% set v = 1 %}{{ v }}{% endgeneration %}[{{ v }}]", {}),
    "generation_in_a_loop": ("{% for m in messages %}{% generation %}{{ loop.index }}{{ m.role }}{% endgeneration %}{% endfor %}", {}),
    "generation_elsewhere": ("{% raw %}{% generation %}{% endraw %}{# {% generation %} #}{{ '{% generation %}' }}", {}),
    "raise": ("a{{ raise_exception('no: ' + messages[0].role) }}", {}),
    "raise_not_reached": ("a{% if false %}{{ raise_exception('no') }}{% endif %}", {}),
    "date": ("{{ strftime_now('%d %B %Y|%m|%b|%a %A|%H:%M:%S|%-d|%y|%j|%%|%Y-%m-%d|%e') }}", {}),
    "date_defined": ("{% if strftime_now is defined %}{{ strftime_now('%d %b %Y') }}{% endif %}", {}),
    "loop_controls": ("{% for v in range(9) %}{% if v == 2 %}{% continue %}{% endif %}{% if v > 4 %}{% break %}{% endif %}{{ v }}{% endfor %}", {}),
    "loop_variables": ("{% for v in l %}{{ loop.index0 }}{{ loop.first }}{{ loop.last }}{{ loop.length }}{{ loop.revindex }}"
                       "{{ loop.previtem is defined }}{{ loop.nextitem is defined }}{{ loop.cycle('a', 'b') }} {% else %}no{% endfor %}", {}),
    "loop_over_dict": ("{% for k in d %}{{ k }}{% endfor %}{% for k, v in d.items() %}{{ k }}={{ v }};{% endfor %}{% for k, v in d | items %}{{ k }}{% endfor %}"
                       "{% for k, v in d|dictsort %}{{ k }}{% endfor %}", {}),
    "loop_filter": ("{% for v in range(6) if v is even %}{{ v }}{{ loop.index }}{% endfor %}", {}),
    "strip": ("[{{ ' \n a \x1c\u00a0\u2003'.strip() }}][{{ ' a '.lstrip() }}][{{ ' a '.rstrip() }}][{{ 'xxaxy'.strip('xy') }}][{{ ' \x1da ' | trim }}][{{ 'aba' | trim('a') }}]", {}),
    "split": ("{{ ' a  b '.split() }}{{ 'a,b,c'.split(',') }}{{ 'a,b,c'.split(',', 1) }}{{ 'abc'.split('</t>') }}{{ 'a</t>b'.split('</t>')[-1] }}"
              "{{ ''.split() }}{{ ''.split(',') }}{{ ' a b  c '.split(none, 1) }}{{ 'a b c'.split(maxsplit=1) }}{{ 'a,b'.split(sep=',') }}", {}),
    "rsplit": ("{{ 'a,b,c'.rsplit(',', 1) }}{{ ' a b  c '.rsplit(none, 1) }}{{ 'a b'.rsplit() }}{{ 'a,b'.rsplit(',') }}", {}),
    "split_empty": ("{{ 'a'.split('') }}", {}),
    "splitlines": ("{{ 'a\\nb\\r\\nc\\rd\\x0be\\n\\nf\\n'.splitlines() }}{{ 'a\\r\\nb'.splitlines(true) }}{{ ''.splitlines() }}", {}),
    "partition": ("{{ 'a=b=c'.partition('=') }}{{ 'a=b=c'.rpartition('=') }}{{ 'a'.partition('=') }}{{ 'a'.rpartition('=') }}", {}),
    "prefixes": ("{{ 'abc'.removeprefix('ab') }}{{ 'abc'.removesuffix('x') }}{{ 'abc'.startswith('a') }}{{ 'abc'.startswith(('x', 'ab')) }}{{ 'abc'.endswith('c') }}", {}),
    "text_methods": ("{{ 'aB'.upper() }}{{ 'aB'.lower() }}{{ 'a b'.title() }}{{ 'aBC'.capitalize() }}{{ 'aaa'.replace('a', 'b', 2) }}{{ 'aba'.count('a') }}"
                     "{{ 'éab'.find('b') }}{{ 'abb'.rfind('b') }}{{ 'éab'.index('a') }}{{ '12'.isdigit() }}{{ 'a'.isalpha() }}{{ ' '.isspace() }}{{ '{} {}'.format(1, 'a') }}", {}),
    "dict_methods": ("{{ d.get('z') }}{{ d.get('zz') }}{{ d.get('zz', 5) }}{{ d.keys() | list }}{{ d.values() | list }}{{ 'z' in d }}{{ d.copy() }}", {}),
    "list_methods": ("{{ [1, 2, 1].count(1) }}{{ ['a', 'b'].index('b') }}", {}),
    "append_is_refused": ("{{ l.append(1) }}", {}),
    "slices": ("{{ l[1:] }}{{ l[-1] }}{{ l[::-1] }}{{ s[:4] }}{{ messages[0:1] }}{{ 'abc'[::-1] }}{{ l[:-2] }}{{ (1, 2, 3)[1:] }}", {}),
    "slices_are_lists": ("{% set m = l[1:] %}{{ m[0] }}{{ m[-1] }}{{ m | length }}{{ m is sequence }}{{ m is iterable }}{{ 'a' in m }}{{ m + [1] }}{{ m | first }}{{ m | last }}{{ m[1:] }}{% for v in m %}{{ loop.last }}{% endfor %}", {}),
    "join_of_numbers": ("{{ ','.join([1, 2]) }}", {}),
    "namespace": ("{% set ns = namespace(a=1, b=[]) %}{% for v in range(3) %}{% set ns.a = ns.a + v %}{% set ns.b = ns.b + [v] %}{% endfor %}{{ ns.a }}{{ ns.b }}{{ ns.zz is defined }}", {}),
    "macros": ("{% macro m(a, b='x', c=none) %}[{{ a }}{{ b }}{{ c }}]{% endmacro %}{{ m(1) }}{{ m(1, b=2) }}{{ m('q', 'r', 's') | upper }}{% call(v) m2() %}{{ v }}{% endcall %}"
               .replace("{% call", "{% macro m2() %}<{{ caller(7) }}>{% endmacro %}{% call"), {}),
    "recursive_macro": ("{% macro m(v) %}{% if v is mapping %}{% for k, w in v.items() %}{{ k }}({{ m(w) }}){% endfor %}{% else %}{{ v }}{% endif %}{% endmacro %}{{ m(d) }}", {}),
    "set_block": ("{% set v %} a\n {{ q }} {% endset %}[{{ v }}]{% set a, b = 1, 2 %}{{ a }}{{ b }}", {}),
    "filters": ("{{ 'a' | upper }}{{ nothing | default('d') }}{{ '' | default('d', true) }}{{ [3, 1] | first }}{{ [3, 1] | last }}{{ l | length }}{{ [1, 2] | sum }}"
                "{{ ['a', 'b'] | map('upper') | list }}{{ messages | selectattr('role', 'equalto', 'user') | list | length }}{{ messages | rejectattr('role', 'equalto', 'user') | list }}"
                "{{ messages | map(attribute='role') | list }}{{ 'a\nb' | indent(2) }}{{ '3' | int + 1 }}{{ 3 | float }}{{ 7.5 | round }}{{ [1, 1, 2] | unique | list }}{{ 'ab' | list }}"
                "{{ 'ab' | replace('a', 'c') }}{{ 'a b' | title }}{{ 'ab' | capitalize }}{{ -2 | abs }}{{ [1, 2] | reverse | list }}{{ '<' | safe }}{{ [2, 3] | max }}", {}),
    "operators": ("{{ 7 // 2 }} {{ -7 // 2 }} {{ 7 / 2 }} {{ 6 / 2 }} {{ 7 % 3 }} {{ -7 % 3 }} {{ 2 ** 3 }} {{ 1 == 1.0 }} {{ 'a' in 'abc' }} {{ 1 not in l }} {{ not t }} {{ t and 'x' }} {{ f or 'y' }} "
                  "{{ 'a' if f }}|{{ 'a' if f else 'b' }} {{ 1 < 2 < 3 }} {{ 'a' < 'b' }} {{ none == nothing }} {{ t + 1 }}", {}),
    "escapes": ("{{ 'a\\nb\\t\\\\ \\'x\\' \\u00e9 \\x41' }}{{ \"a'b\" }}{{ 'a\nb' }}", {}),
    "undefined_attribute": ("[{{ messages[0].nothing }}][{{ messages[0]['nothing'] }}][{{ messages[5] }}]", {}),
    "attribute_of_undefined": ("{{ nothing.a }}", {}),
    "undefined_in_a_loop": ("{% for v in nothing %}a{% else %}b{% endfor %}", {}),
    "undefined_function": ("{{ nothing() }}", {}),
    "length_of_none": ("{{ n | length }}", {}),
    "reasoning_content": ("{{ messages | tojson }}", {"messages": [{"role": "assistant", "content": "a", "reasoning_content": "r"}]}),
    "reasoning_from_thinking": ("{{ messages | tojson }}", {"messages": [{"role": "assistant", "thinking": "r", "content": "a"}]}),
    "reasoning_from_reasoning": ("{{ messages | tojson }}", {"messages": [{"role": "assistant", "content": "a", "reasoning_content": None, "reasoning": "r"}]}),
    "reasoning_first_wins": ("{{ messages | tojson }}", {"messages": [{"role": "a", "thinking": "t", "reasoning": "r", "reasoning_content": "c"}]}),
    "variables": ("{{ bos_token }}{{ documents }}{{ add_generation_prompt }}{{ tools }}{{ enable_thinking is defined }}", {"bos_token": "<s>"}),
    "key_order": ("{{ tools | tojson }}{% for t in tools %}{{ t.function.parameters.properties }}{% endfor %}",
                  {"tools": [{"type": "function", "function": {"name": "z", "parameters": {"type": "object", "properties": {"b": {}, "a": {}, "c": {"z": 1, "y": 2}}}}}]}),
    "empty_tools": ("{{ tools }}{% if tools %}a{% else %}b{% endif %}{{ tools is iterable and tools | length > 0 }}", {"tools": []}),
    "prompt_flag": ("{% if add_generation_prompt %}<a>{% endif %}", {"add_generation_prompt": True}),
    "content_parts": ("{% for m in messages %}{% if m.content is string %}{{ m.content }}{% else %}{% for p in m.content %}{% if p['type'] == 'text' %}{{ p.text }}{% endif %}{% endfor %}{% endif %}{% endfor %}",
                      {"messages": [{"role": "user", "content": [{"type": "text", "text": "é"}, {"type": "image"}]}, {"role": "user", "content": "b"}]}),
    "items_of_a_dict_with_an_items_key": ("{{ o.items() | list | length }}{{ o['items'] }}", {"o": {"items": [1], "type": "array"}}),
    "do_is_no_statement": ("{% do l %}", {}),
    "unknown_filter": ("{{ 1 | nothing }}", {}),
    "unclosed": ("{% if true %}", {}),
    "dict_function": ("{{ dict(a=1, b='c') }}", {}),
    "comparison_of_kinds": ("{{ '1' == 1 }}{{ true == 1 }}{{ none == false }}{{ [1] == [1] }}{{ {'a': 1} == {'a': 1} }}", {}),
    "scope_of_loops": ("{% set v = 1 %}{% for w in [1, 2] %}{% set v = 2 %}{% endfor %}{{ v }}{% if true %}{% set v = 3 %}{% endif %}{{ v }}", {}),
    "whitespace_control": ("a  {{- 1 }}  {{ 2 -}}  b\n{%- for v in [1, 2] -%}\n  {{ v }}\n{%- endfor %}\n c\n {#- d -#} \n e", {}),
}


class Clock(datetime.datetime):
    @classmethod
    def now(cls, tz=None):
        return TODAY


def render(template, extra):
    arguments = {**VALUES, **extra}
    messages = arguments.pop("messages", USER)
    rendered, _ = render_jinja_template([messages], chat_template=template, **arguments)
    return rendered[0]


def main():
    chat_template_utils.datetime = Clock
    cases = []
    for name, (template, extra) in TEMPLATES.items():
        try:
            result = {"expected": render(template, extra)}
        except Exception as error:  # noqa: BLE001: every failure is one
            result = {"expected": None, "raises": f"{type(error).__name__}: {error}"}
        cases.append({"name": name, "template": template, "extra": extra, **result})
    here = pathlib.Path(__file__).parent
    lines = ",\n".join(json.dumps(case) for case in cases)
    values = json.dumps(VALUES)
    (here / "cases.json").write_text(f'{{"values": {values},\n"cases": [\n{lines}\n]}}\n')
    print(len(cases), "cases,", sum(case["expected"] is None for case in cases), "raise")


if __name__ == "__main__":
    main()
