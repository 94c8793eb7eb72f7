package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"regexp"
	"slices"
	"unicode/utf8"
)

// refusal is what the reader panics with; main tells it and ends.
type refusal string

func refuse(format string, values ...any) {
	panic(refusal(fmt.Sprintf(format, values...)))
}

func must[T any](value T, err error) T {
	if err != nil {
		refuse("%v", err)
	}
	return value
}

// refused runs a step whose refusal does not end the program.
func refused(step func()) (reason refusal) {
	defer func() {
		if caught := recover(); caught != nil {
			reason = caught.(refusal)
		}
	}()
	step()
	return ""
}

// document is a JSON object. Its fields are taken from a map, since Go's structs
// would also take a field whose name differs in case.
type document struct {
	name   string
	fields map[string]any
}

func parse(name string, text []byte) any {
	if !utf8.Valid(text) {
		refuse("%s is not UTF-8", name)
	}
	decoder := json.NewDecoder(bytes.NewReader(text))
	decoder.UseNumber()
	var value any
	if err := decoder.Decode(&value); err != nil {
		refuse("%s is no JSON: %v", name, err)
	}
	if _, err := decoder.Token(); err != io.EOF {
		refuse("%s goes on after its JSON", name)
	}
	return value
}

func parseObject(name string, text []byte) document {
	return asObject(name, parse(name, text))
}

func parseFormat(name string, text []byte, formats ...string) document {
	d := parseObject(name, text)
	if format := d.text("format"); !slices.Contains(formats, format) {
		refuse("%s has the format %q, which this reader does not know", name, format)
	}
	return d
}

func asObject(name string, value any) document {
	fields, ok := value.(map[string]any)
	if !ok {
		refuse("%s is no object", name)
	}
	return document{name, fields}
}

func field[T any](d document, name string) T {
	value, ok := d.fields[name].(T)
	if !ok {
		refuse("%s: %q is missing or of another type", d.name, name)
	}
	return value
}

func (d document) text(name string) string { return field[string](d, name) }

func (d document) matched(name string, form *regexp.Regexp, most int) string {
	text := d.text(name)
	if len(text) > most || !form.MatchString(text) {
		refuse("%s: %q is %.80q", d.name, name, text)
	}
	return text
}

// optional is "" where the field is null or missing.
func (d document) optional(name string) string {
	if d.fields[name] == nil {
		return ""
	}
	return d.text(name)
}

func (d document) number(name string) int64 {
	return asNumber(d.name, field[json.Number](d, name))
}

func (d document) numbers(name string) []int64 {
	var all []int64
	for _, value := range field[[]any](d, name) {
		all = append(all, asNumber(d.name, value))
	}
	return all
}

func asNumber(name string, value any) int64 {
	number, _ := value.(json.Number)
	whole, err := number.Int64()
	if err != nil || whole < 0 {
		refuse("%s: %v is no whole number from 0 on", name, value)
	}
	return whole
}

func (d document) objects(name string) []document {
	var all []document
	for _, value := range field[[]any](d, name) {
		all = append(all, asObject(d.name+": "+name, value))
	}
	return all
}

func (d document) object(name string) document {
	return asObject(d.name+": "+name, d.fields[name])
}

func (d document) exactly(names ...string) {
	slices.Sort(names)
	if found := slices.Sorted(maps.Keys(d.fields)); !slices.Equal(found, names) {
		refuse("%s has the fields %q, not %q", d.name, found, names)
	}
}
