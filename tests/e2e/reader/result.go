package main

import (
	"io"
	"path"
	"slices"
)

func (w *work) results() {
	for _, name := range w.directories("export") {
		w.result("export/" + name)
	}
}

func (w *work) result(directory string) {
	var told lines
	d, found := w.resultManifest(directory)
	told.file(directory+"/manifest.json", found)
	files := w.with(w.ringOf(d))
	for _, entry := range w.listedFiles(directory, d, files.suffix()) {
		name := directory + "/" + entry.text("name")
		found := openFile(w.at(name+files.suffix()), files.ring, inDirectory("export", name), io.Discard)
		found.expect(name, entry, true)
		told.file(name, found)
	}
	told.tell()
}

func (w *work) with(ring *keyring) *work { return &work{root: w.root, job: w.job, ring: ring} }

func (w *work) resultManifest(directory string) (document, opened) {
	name := directory + "/manifest.json"
	found, text := w.read(name, inDirectory("export", name))
	d := parseFormat(name, text, "dstj-export/1")
	w.sameJob(d)
	if d.text("name") != path.Base(directory) {
		refuse("%s is of the result %q", name, d.text("name"))
	}
	checkKeyID(d, w.ringOf(d))
	w.checkCommit(d)
	return d, found
}

// ringOf is the keyring of a result's files, which a sealed job may leave in the clear.
func (w *work) ringOf(d document) *keyring {
	if d.optional("keyId") == "" {
		return nil
	}
	return w.ring
}

func (w *work) checkCommit(d document) {
	if w.head == nil || w.head.exported == "" {
		return
	}
	allowed := append(slices.Clone(w.newest().digests), w.head.exported)
	if !slices.Contains(allowed, d.optional("commit")) {
		refuse("%s is of the commit %q: a newer result was replaced by it", d.name, d.optional("commit"))
	}
}

// listedFiles compares the directory with its manifest before anything is opened.
func (w *work) listedFiles(directory string, d document, suffix string) []document {
	listed := []string{directory + "/manifest.json" + w.suffix()}
	for _, entry := range d.objects("files") {
		listed = append(listed, directory+"/"+entry.text("name")+suffix)
	}
	found := w.names(directory)
	slices.Sort(listed)
	slices.Sort(found)
	if !slices.Equal(listed, found) {
		refuse("%s holds %q, its manifest lists %q", directory, found, listed)
	}
	return d.objects("files")
}
