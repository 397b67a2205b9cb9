package config

import (
	"os"
	"path/filepath"
)

// Find returns the default configuration files of a program that is started without --config-file, for
// [Source].Files. As oslo.config does, it searches ~/.PROJECT, ~, /etc/PROJECT and /etc, in this order, for each of the
// files PROJECT.conf and PROGRAM.conf and of the directories PROJECT.conf.d and PROGRAM.conf.d. For each of them, the
// result has the first path that exists, in the order of this list. As in oslo.config, a file counts as missing if the process
// cannot read its directory. The parameter home stands for ~, such as the result of os.UserHomeDir. Any argument may be
// empty. Find reads no file.
func Find(home, project, program string) []string {
	var dirs []string
	for _, root := range []string{home, "/etc"} {
		if root == "" {
			continue
		}
		own := filepath.Join(root, project)
		if root == home {
			own = filepath.Join(root, "."+project)
		}
		if project != "" {
			dirs = append(dirs, own)
		}
		dirs = append(dirs, root)
	}
	var out []string
	for _, ext := range []string{".conf", dirSuffix} {
		for _, name := range []string{project, program} {
			if path := findFirst(dirs, name, ext); path != "" {
				out = append(out, path)
			}
		}
	}
	return out
}

// dirSuffix is the end of the name of a directory of configuration files.
const dirSuffix = ".conf.d"

// findFirst returns the path of name+ext in the first directory that has it, or "". The path must be a directory if ext is
// dirSuffix, and must not be one otherwise.
func findFirst(dirs []string, name, ext string) string {
	if name == "" {
		return ""
	}
	for _, dir := range dirs {
		path := filepath.Join(dir, name+ext)
		if info, err := os.Stat(path); err == nil && info.IsDir() == (ext == dirSuffix) {
			return path
		}
	}
	return ""
}
