package main

import (
	"net/url"

	"github.com/spf13/cobra"
	"go.etcd.io/etcd/server/v3/embed"
)

// newEtcdCommand runs one member without TLS: only its own network namespace can reach it.
func newEtcdCommand() *cobra.Command {
	var dir string
	command := &cobra.Command{Use: "etcd", SilenceUsage: true, RunE: func(*cobra.Command, []string) error { return runEtcd(dir) }}
	command.Flags().StringVar(&dir, "data-dir", "etcd", "where the data is kept")
	return command
}

func runEtcd(dir string) error {
	config := embed.NewConfig()
	config.Dir = dir
	client, peer := url.URL{Scheme: "http", Host: "127.0.0.1:2379"}, url.URL{Scheme: "http", Host: "127.0.0.1:2380"}
	config.ListenClientUrls, config.AdvertiseClientUrls = []url.URL{client}, []url.URL{client}
	config.ListenPeerUrls, config.AdvertisePeerUrls = []url.URL{peer}, []url.URL{peer}
	config.InitialCluster = config.InitialClusterFromName(config.Name)
	config.UnsafeNoFsync = true // a test cluster may lose its state with the machine's power, not with the process
	etcd, err := embed.StartEtcd(config)
	if err != nil {
		return err
	}
	return <-etcd.Err()
}
