package main

import (
	"fmt"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

var (
	stepForm = regexp.MustCompile(`^step-(\d{8,18})$`)
	rankForm = regexp.MustCompile(`^rank-\d{5,18}\.(safetensors|json)$`)
)

const oldestFormat = "dstj-checkpoint/1"

// commit has every digest that a recorded checkpoint may be named by.
type commit struct {
	step    int64
	digests []string
}

type head struct {
	lineage  int64
	exported string
	commits  []commit
}

func (w *work) checkpoints() {
	steps := w.steps()
	if !exists(w.at("checkpoints/HEAD.json" + w.suffix())) {
		if len(steps) > 0 {
			refuse("checkpoints/HEAD.json%s is missing beside checkpoints", w.suffix())
		}
		return
	}
	w.readHead()
	for i, recorded := range w.head.commits {
		w.recorded(recorded, steps, i == len(w.head.commits)-1)
	}
	w.recover(steps)
}

func (w *work) steps() []int64 {
	var steps []int64
	for _, name := range w.directories("checkpoints") {
		if match := stepForm.FindStringSubmatch(name); match != nil {
			step := must(strconv.ParseInt(match[1], 10, 64))
			if stepName(step) == name {
				steps = append(steps, step)
			}
		}
	}
	slices.Sort(steps)
	return steps
}

func stepName(step int64) string { return fmt.Sprintf("step-%08d", step) }

func (w *work) readHead() {
	var told lines
	found, text := w.read("checkpoints/HEAD.json", binding{purpose: "checkpoint", name: "HEAD.json"})
	d := parseFormat("checkpoints/HEAD.json", text, "dstj-head/1")
	w.sameJob(d)
	w.head = &head{lineage: d.number("lineage"), exported: d.optional("exported")}
	for _, entry := range d.objects("commits") {
		w.head.commits = append(w.head.commits, commit{entry.number("step"), []string{entry.text("digest")}})
	}
	told.file("checkpoints/HEAD.json", found)
	told.tell()
}

// recorded passes over an older commit whose directory is gone: pruning deletes
// directories before it updates HEAD.
func (w *work) recorded(c commit, steps []int64, newest bool) {
	if slices.Contains(steps, c.step) {
		found, text := w.readManifest(c.step)
		found.expectDigest(stepName(c.step)+"/manifest.json", c.digests...)
		w.checkpoint(c.step, found, w.parseManifest(c.step, text))
	} else if newest {
		refuse("the newest checkpoint, %s, is missing", stepName(c.step))
	}
}

// recover reads what a crash left complete but not recorded.
func (w *work) recover(steps []int64) {
	for _, step := range steps {
		if last := w.newest(); step > last.step {
			reason := refused(func() { w.continuation(step, last) })
			if reason != "" {
				fmt.Fprintf(os.Stderr, "not used: %s: %s\n", stepName(step), reason)
			}
		}
	}
}

func (w *work) newest() commit {
	if len(w.head.commits) == 0 {
		return commit{step: -1, digests: []string{""}}
	}
	return w.head.commits[len(w.head.commits)-1]
}

func (w *work) continuation(step int64, last commit) {
	found, text := w.readManifest(step)
	d := w.parseManifest(step, text)
	if d.number("lineage") != w.head.lineage || !slices.Contains(last.digests, d.optional("previous")) {
		refuse("it does not follow the last commit")
	}
	w.checkpoint(step, found, d)
	w.head.commits = append(w.head.commits, commit{step, found.digests})
}

func (w *work) readManifest(step int64) (opened, []byte) {
	name := "checkpoints/" + stepName(step) + "/manifest.json"
	return w.read(name, binding{purpose: "checkpoint", step: strconv.FormatInt(step, 10), name: "manifest.json"})
}

func (w *work) parseManifest(step int64, text []byte) document {
	d := parseFormat(stepName(step)+"/manifest.json", text, oldestFormat, "dstj-checkpoint/2", "dstj-checkpoint/3")
	w.sameJob(d)
	checkKeyID(d, w.ring)
	if d.number("step") != step {
		refuse("%s is of step %d", d.name, d.number("step"))
	}
	return d
}

func (w *work) checkpoint(step int64, found opened, d document) {
	var told lines
	place := "checkpoints/" + stepName(step)
	told.file(place+"/manifest.json", found)
	held := map[string]map[string]block{}
	for _, entry := range d.objects("files") {
		name, file, text := w.rankFile(step, entry, d.text("format") != oldestFormat)
		told.file(place+"/"+name, file)
		if strings.HasSuffix(name, ".json") {
			parseObject(place+"/"+name, text)
		} else {
			held[name] = readSafetensors(place+"/"+name, text)
		}
	}
	for _, t := range assembled(d, held) {
		told.add(place+t.place, int64(len(t.data)), t.digest())
	}
	told.tell()
}

func (w *work) rankFile(step int64, entry document, salted bool) (string, opened, []byte) {
	name, rank := entry.matched("name", rankForm, 40), entry.number("rank")
	if !strings.HasPrefix(name, fmt.Sprintf("rank-%05d.", rank)) {
		refuse("%s is not of rank %d", name, rank)
	}
	bound := binding{"checkpoint", "", strconv.FormatInt(step, 10), strconv.FormatInt(rank, 10), name}
	path := "checkpoints/" + stepName(step) + "/" + name
	found, text := w.read(path, bound)
	found.expect(path, entry, salted)
	return name, found, text
}

func (o opened) expectDigest(name string, recorded ...string) {
	for _, digest := range recorded {
		if slices.Contains(o.digests, digest) {
			return
		}
	}
	refuse("%s is another file than the one recorded", name)
}

func (o opened) expect(name string, entry document, salted bool) {
	o.expectDigest(name, entry.text("digest"))
	if o.size != entry.number("size") || o.plainSize != entry.number("plainSize") {
		refuse("%s has another size than recorded", name)
	}
	if salted && o.salt != entry.optional("salt") {
		refuse("%s has another salt than recorded", name)
	}
}
