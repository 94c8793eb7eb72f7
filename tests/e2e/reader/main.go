// Reader opens everything below the work directory of a job, and tells of each
// file and tensor its name, its size and the SHA-256 of its plaintext. It is
// written from docs/checkpoint-format.md alone.
package main

import (
	"bytes"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
)

// work is what the reader knows of a job. Without a ring the job is in the clear.
type work struct {
	root string
	job  string
	ring *keyring
	head *head
}

func main() {
	var paths []string
	job := flag.String("job", "", "the job, as `NS/NAME`")
	clearData := flag.Bool("clear-data", false, "the job file says data.sealed: false")
	flag.Func("kek", "a `FILE` with a key-encryption key", func(path string) error {
		paths = append(paths, path)
		return nil
	})
	flag.Parse()
	if flag.NArg() != 1 {
		fmt.Fprintln(os.Stderr, "usage: reader [-kek FILE]... [-job NS/NAME] [-clear-data] DIRECTORY")
		os.Exit(2)
	}
	if reason := refused(func() { readAll(flag.Arg(0), *job, readKeks(paths), *clearData) }); reason != "" {
		fmt.Fprintf(os.Stderr, "refused: %s\n", reason)
		os.Exit(1)
	}
}

func readAll(root, job string, own keks, clearData bool) {
	must(os.ReadDir(root))
	w := &work{root: root, job: job}
	if len(own) > 0 || exists(w.at("keyring.json")) {
		w.ring = openKeyring(w.at("keyring.json"), job, own)
		w.job = w.ring.job
	}
	w.checkpoints()
	w.results()
	if clearData {
		w.ring = nil
	}
	w.prepared()
}

func (w *work) at(name string) string { return filepath.Join(w.root, filepath.FromSlash(name)) }

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

func (w *work) suffix() string {
	if w.ring == nil {
		return ""
	}
	return ".sealed"
}

func (w *work) read(name string, bound binding) (opened, []byte) {
	var text bytes.Buffer
	found := openFile(w.at(name+w.suffix()), w.ring, bound, &text)
	return found, text.Bytes()
}

func (w *work) sameJob(d document) {
	if w.job == "" {
		w.job = d.matched("job", jobForm, 512)
	}
	if d.text("job") != w.job {
		refuse("%s is of the job %q, not of %q", d.name, d.text("job"), w.job)
	}
}

// checkKeyID compares the key that a manifest names with those of its files.
func checkKeyID(d document, ring *keyring) {
	known := []string{""}
	if ring != nil {
		known = ring.ids()
	}
	if id := d.optional("keyId"); !slices.Contains(known, id) {
		refuse("%s names the key %q, which its files do not have", d.name, id)
	}
}

// inDirectory binds a file of prepared data or of a result.
func inDirectory(purpose, name string) binding {
	directory, _, _ := strings.Cut(path.Base(path.Dir(name)), ".partial-")
	return binding{purpose: purpose, directory: directory, name: path.Base(name)}
}

// names are those of all files below a directory, from the root.
func (w *work) names(directory string) []string {
	var names []string
	err := filepath.WalkDir(w.at(directory), func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		if !entry.Type().IsRegular() {
			refuse("%s is neither file nor directory", path)
		}
		names = append(names, filepath.ToSlash(must(filepath.Rel(w.root, path))))
		return nil
	})
	return must(names, err)
}

func (w *work) directories(parent string) []string {
	var names []string
	entries, err := os.ReadDir(w.at(parent))
	if err != nil && !os.IsNotExist(err) {
		refuse("%v", err)
	}
	for _, entry := range entries {
		if entry.IsDir() && !strings.Contains(entry.Name(), ".partial-") {
			names = append(names, entry.Name())
		}
	}
	return names
}

// lines are told once all that they belong to was verified.
type lines []string

func (l *lines) add(name string, size int64, digest string) {
	*l = append(*l, fmt.Sprintf("%s\t%d\t%s", name, size, digest))
}

func (l *lines) file(name string, found opened) { l.add(name, found.plainSize, found.sha256) }

func (l *lines) tell() {
	for _, line := range *l {
		fmt.Println(line)
	}
}
